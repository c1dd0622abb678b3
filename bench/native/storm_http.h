/* What comes back by HTTP: the client acknowledges every segment in order at once; what comes early is
   compared and waits, what comes twice is counted. A segment may be as long as the server's
   kernel makes it (veth hands them over whole): no card would have cut them there either. */
#ifndef BENCH_STORM_HTTP_H
#define BENCH_STORM_HTTP_H

#include "storm_ops.h"

enum { LONGEST_SEGMENT = 1 << 17 };

static int web = -1; /* a packet socket that hears the clients' TCP and nothing else */

/* How many bytes of the file must come, and from where. */
static uint64_t expected(const struct client *client, uint64_t *from)
{
    const struct op *op = &ops[client->at];
    uint64_t bytes = op_file[client->at].bytes;
    *from = op->device == GET_RANGE ? op->lba : 0;
    if (op->device == GET_RANGE)
        return *from + op->count <= bytes ? op->count : 0;
    return op->device == HEAD_FILE ? 0 : bytes;
}

/* The head of an answer, whole: 1 if it is the one that was wanted. */
static int right_head(const struct client *client)
{
    const struct op *op = &ops[client->at];
    const char *head = client->tcp.head, *length = strcasestr(head, "\r\nContent-Length:");
    uint64_t from, bytes = expected(client, &from);
    if (op->device == HEAD_FILE)
        bytes = op_file[client->at].bytes;
    if (strncmp(head, "HTTP/1.1 ", 9) || atoi(head + 9) != (op->device == GET_RANGE ? 206 : 200))
        return 0;
    if (!length || strtoull(length + 17, NULL, 10) != bytes)
        return 0;
    if (op->device == GET_RANGE) {
        const char *range = strcasestr(head, "\r\nContent-Range: bytes ");
        return range && strtoull(range + 23, NULL, 10) == from;
    }
    return 1;
}

/* Bytes of a file, at this place in it. */
static void compare(const struct client *client, uint64_t at, const uint8_t *data, uint32_t size)
{
    uint64_t from, bytes = expected(client, &from);
    if (at + size > bytes || memcmp(data, op_file[client->at].data + from + at, size))
        wrong++;
}

/* Bytes that come before others which are still missing: compared, and their place kept. */
static void take_ahead(struct client *client, uint32_t sequence, const uint8_t *data, uint32_t size)
{
    struct tcp *tcp = &client->tcp;
    uint32_t ahead = sequence - tcp->wanted;
    if (!tcp->answered || tcp->pieces == PIECES || ahead > WINDOW << WINDOW_SCALE)
        return; /* it comes again */
    compare(client, tcp->body + ahead, data, size);
    tcp->piece[tcp->pieces][0] = sequence;
    tcp->piece[tcp->pieces++][1] = sequence + size;
}

/* What of that has its turn now. */
static void join_pieces(struct tcp *tcp)
{
    for (uint32_t i = 0; i < tcp->pieces;) {
        if ((int32_t)(tcp->piece[i][0] - tcp->wanted) > 0) {
            i++;
            continue;
        }
        uint32_t more = tcp->piece[i][1] - tcp->wanted;
        memcpy(tcp->piece[i], tcp->piece[--tcp->pieces], sizeof tcp->piece[i]);
        if ((int32_t)more > 0) {
            tcp->wanted += more;
            tcp->body += more;
            i = 0;
        }
    }
}

/* Bytes of an answer, in order. */
static void take_http(struct client *client, const uint8_t *data, uint32_t size)
{
    struct tcp *tcp = &client->tcp;
    tcp->wanted += size;
    while (size && !tcp->answered) {
        if (tcp->head_bytes + 1 == sizeof tcp->head) {
            tcp->state = TCP_SHUT;
            return;
        }
        tcp->head[tcp->head_bytes++] = (char)*data++;
        size--;
        tcp->head[tcp->head_bytes] = 0;
        if (tcp->head_bytes >= 4 && !memcmp(tcp->head + tcp->head_bytes - 4, "\r\n\r\n", 4)) {
            tcp->answered = 1;
            if (!right_head(client)) {
                tcp->state = TCP_SHUT; /* what follows is no file; the client stays where it is */
                return;
            }
        }
    }
    if (size)
        compare(client, tcp->body, data, size);
    tcp->body += size;
    join_pieces(tcp);
}

/* The next operation, if the file is whole. */
static void finish_http(struct client *client, int64_t now)
{
    struct tcp *tcp = &client->tcp;
    uint64_t from;
    if (!tcp->answered || tcp->body < expected(client, &from))
        return;
    http_bytes += tcp->body;
    note(M_HTTP, now - client->asked);
    tcp->answered = 0;
    next_op(client, now);
}

static void take_tcp(const uint8_t *frame, uint32_t size, int64_t now)
{
    struct client *client = client_of(frame);
    down_bytes += size;
    if (!client || size < TCP_HEAD || frame[14] != 0x45 || frame[23] != 6)
        return;
    struct tcp *tcp = &client->tcp;
    const uint8_t *head = frame + 34;
    uint32_t lead = 34u + (head[12] >> 4) * 4u, total = 14u + get16(frame + 16), flags = head[13], sequence, acked;
    if (total < size) /* padded */
        size = total > lead ? total : lead;
    if (get16(head + 2) != tcp->port || tcp->state == TCP_SHUT || size < lead)
        return;
    memcpy(&sequence, head + 4, 4);
    memcpy(&acked, head + 8, 4);
    sequence = ntohl(sequence);
    if (flags & RST) {
        if (tcp->state != TCP_LEAVING)
            failed++;
        tcp->state = TCP_SHUT;
        return;
    }
    if (!(flags & ACKED) || (tcp->state == TCP_ASKING && (!(flags & SYN) || ntohl(acked) != tcp->next)))
        return;
    int asks = client->at < op_count && ops[client->at].kind == HTTP && client->stage;
    if (asks && ntohl(acked) == tcp->next) {
        client->timer = 0; /* nothing of ours is on its way any more */
        set_deadline(client);
    }
    if (tcp->state == TCP_ASKING) {
        tcp->state = TCP_UP;
        tcp->wanted = sequence + 1;
        send_plainly(client, ACKED);
        ask_file(client, now);
        set_deadline(client);
        return;
    }
    uint32_t bytes = size - lead;
    int32_t known = (int32_t)(tcp->wanted - sequence);
    if (bytes > mtu_bytes - 40) /* on a cable each frame of it would have heads of its own */
        down_bytes += (bytes - 1) / (mtu_bytes - 40) * TCP_HEAD;
    if (bytes && (int32_t)bytes > known && !(asks && client->stage == 2)) {
        stray++; /* nobody asked for more */
        return;
    }
    if (known < 0) { /* no acknowledgement: two CPUs of one veth overtake each other all the time */
        take_ahead(client, sequence, frame + lead, bytes);
        return;
    }
    if (known) { /* seen before, at least its first part */
        again_http++;
        known = (uint32_t)known > bytes ? (int32_t)bytes : known;
    }
    if (bytes > (uint32_t)known)
        take_http(client, frame + lead + known, bytes - (uint32_t)known);
    if ((flags & FIN) && tcp->wanted == sequence + bytes) {
        tcp->wanted++;
        send_plainly(client, tcp->state == TCP_UP ? FIN | ACKED : ACKED);
        tcp->next += tcp->state == TCP_UP;
        tcp->state = TCP_SHUT;
    } else if (bytes || (flags & FIN)) {
        send_plainly(client, ACKED);
    }
    if (!asks)
        return;
    finish_http(client, now);
    if (tcp->state == TCP_SHUT && client->at < op_count && ops[client->at].kind == HTTP && client->stage == 2)
        failed++; /* refused, or closed before the file was whole */
}

/* A socket that is given TCP to the clients, big enough for all their windows. */
static void open_web(const char *interface)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(0x0800),
                                  .sll_ifindex = (int)if_nametoindex(interface)};
    int most = 1 << 30;
    web = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (web < 0)
        die("packet socket");
    keep_protocol(web, 6);
    option(web, PACKET_IGNORE_OUTGOING, 1);
    if (setsockopt(web, SOL_SOCKET, SO_RCVBUFFORCE, &most, sizeof most))
        die("receive buffer");
    if (bind(web, (struct sockaddr *)&address, sizeof address))
        die(interface);
}

static uint32_t poll_web(int64_t now)
{
    static uint8_t segment[LONGEST_SEGMENT];
    uint32_t count = 0;
    ssize_t size;
    while (count < 16 && (size = recv(web, segment, sizeof segment, MSG_DONTWAIT | MSG_TRUNC)) > 0) {
        if ((size_t)size > sizeof segment)
            die("a segment is longer than any should be");
        take_tcp(segment, (uint32_t)size, now);
        count++;
    }
    return count;
}

#endif
