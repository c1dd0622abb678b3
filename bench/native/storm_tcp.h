/* HTTP as iPXE and UEFI do it: one connection of one client, a file after the other, over a TCP of
   our own, so that each client keeps its MAC and the address that it leased. It offers iPXE's window of
   256 KiB. This is what a client sends of its own accord; storm_http.h is what it hears. */
#ifndef BENCH_STORM_TCP_H
#define BENCH_STORM_TCP_H

#include "storm_disks.h"

enum {
    FIN = 1, SYN = 2, RST = 4, PUSH = 8, ACKED = 16, TCP_HEAD = 54, HTTP_PORT = 80, WINDOW_SCALE = 9,
    WINDOW = (256 << 10) >> WINDOW_SCALE,
};
enum tcp_state { TCP_SHUT, TCP_ASKING, TCP_UP, TCP_LEAVING };
enum { GET_FILE, HEAD_FILE, GET_RANGE }; /* an HTTP operation's `device` */

/* Sum of 16-bit words as the checksums of IP and TCP want it, not yet turned over. */
static uint32_t sum_of(const uint8_t *at, uint32_t bytes, uint32_t sum)
{
    for (uint32_t i = 0; i + 1 < bytes; i += 2)
        sum += get16(at + i);
    if (bytes & 1)
        sum += (uint32_t)at[bytes - 1] << 8;
    while (sum >> 16)
        sum = (sum >> 16) + (sum & 0xFFFF);
    return sum;
}

/* Ethernet, IPv4 and TCP heads before `bytes` of options and data that stand at frame + TCP_HEAD;
   the frame's length. */
static uint32_t put_tcp(uint8_t *frame, const struct client *client, int flags, uint32_t options, uint32_t bytes)
{
    const struct tcp *tcp = &client->tcp;
    uint8_t *head = frame + 34;
    uint32_t sequence = htonl(tcp->next), wanted = htonl(tcp->wanted);
    /* put_udp writes what comes before a datagram of this size; the ports are at the same place. */
    put_udp(frame, target, client->mac, client->ip, server_ip, tcp->port, HTTP_PORT, bytes + 12);
    frame[23] = 6;
    put16(frame + 24, 0);
    put16(frame + 24, ~sum_of(frame + 14, 20, 0) & 0xFFFF);
    memcpy(head + 4, &sequence, 4);
    memcpy(head + 8, &wanted, 4);
    head[12] = (uint8_t)((20 + options) / 4 << 4);
    head[13] = (uint8_t)flags;
    put16(head + 14, flags & SYN ? 65535 : WINDOW);
    memset(head + 16, 0, 4);
    uint32_t sum = sum_of(frame + 26, 8, 6 + 20 + bytes);
    put16(head + 16, ~sum_of(head, 20 + bytes, sum) & 0xFFFF);
    return TCP_HEAD + bytes < 60 ? 60 : TCP_HEAD + bytes;
}

/* Something that is sent again until it is acknowledged: a SYN, a request. */
static void send_surely(struct client *client, int flags, uint32_t options, uint32_t bytes, int64_t now)
{
    client->packet_bytes = put_tcp(client->packet, client, flags, options, bytes);
    client->tcp.next += bytes - options + (flags & SYN ? 1u : 0u);
    client->wait_ms = IPXE_WAIT_MS;
    client->timer = now + IPXE_WAIT_MS * 1000000;
    send_packet(client);
}

static void send_plainly(const struct client *client, int flags)
{
    uint8_t frame[64] = {0};
    uint32_t bytes = put_tcp(frame, client, flags, 0, 0);
    if (send(ip.fd, frame, bytes, 0) < 0 && errno != ENOBUFS && errno != EAGAIN)
        die("send");
    up_bytes += bytes;
}

static void connect_tcp(struct client *client, int64_t now)
{
    struct tcp *tcp = &client->tcp;
    const uint8_t options[8] = {2, 4, (uint8_t)((mtu_bytes - 40) >> 8), (uint8_t)(mtu_bytes - 40),
                                3, 3, WINDOW_SCALE, 1};
    *tcp = (struct tcp){.state = TCP_ASKING, .port = (uint16_t)(2048 + client->turns % 60000),
                        .next = client->number << 16 | (client->turns & 0xFFFF)};
    memcpy(client->packet + TCP_HEAD, options, sizeof options);
    send_surely(client, SYN, sizeof options, sizeof options, now);
}

static void ask_file(struct client *client, int64_t now)
{
    const struct op *op = &ops[client->at];
    char host[INET_ADDRSTRLEN], range[64] = "", *at = (char *)client->packet + TCP_HEAD;
    size_t room = sizeof client->packet - TCP_HEAD;
    inet_ntop(AF_INET, &server_ip, host, sizeof host);
    if (op->device == GET_RANGE)
        snprintf(range, sizeof range, "Range: bytes=%lu-%lu\r\n", op->lba, op->lba + op->count - 1);
    int bytes = snprintf(at, room, "%s %s HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE\r\nHost: %s\r\n%s\r\n",
                         op->device == HEAD_FILE ? "HEAD" : "GET", op_file[client->at].name, host, range);
    if (bytes < 0 || (size_t)bytes >= room)
        die("a path of the trace is too long");
    client->tcp.head_bytes = 0;
    client->tcp.body = 0;
    client->stage = 2;
    client->asked = now;
    send_surely(client, PUSH | ACKED, 0, (uint32_t)bytes, now);
}

static void begin_http(struct client *client, int64_t now)
{
    if (client->tcp.state == TCP_UP)
        ask_file(client, now);
    else
        connect_tcp(client, now);
}

/* iPXE starts the kernel: its connection ends. */
static void leave_tcp(struct client *client)
{
    if (client->tcp.state != TCP_UP)
        return;
    send_plainly(client, FIN | ACKED);
    client->tcp.next++;
    client->tcp.state = TCP_LEAVING;
}

#endif
