/* DHCP, TFTP and ARP frames of a booting client, built and taken apart. */
#ifndef BENCH_STORM_WIRE_H
#define BENCH_STORM_WIRE_H

#include "ring.h"

enum { IP_HEAD = 42, DHCP_FIXED = 240, MOST_PACKET = 1514, DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5 };

static inline uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* Of IPv4, packets of one protocol alone. */
static void keep_protocol(int fd, uint8_t protocol)
{
    struct sock_filter code[] = {
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 23},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, protocol},
        {BPF_RET | BPF_K, 0, 0, 0x40000},
        {BPF_RET | BPF_K, 0, 0, 0},
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        die("filter");
}

/* Ethernet, IPv4 and UDP before `size` bytes that stand at frame + IP_HEAD; the frame's length. No
   UDP checksum: IPv4 allows that. Addresses in network order. */
static uint32_t put_udp(uint8_t *frame, const uint8_t *dst, const uint8_t *src, uint32_t from, uint32_t to,
                        uint32_t sport, uint32_t dport, uint32_t size)
{
    uint32_t sum = 0;
    memcpy(frame, dst, 6);
    memcpy(frame + 6, src, 6);
    put16(frame + 12, 0x0800);
    memset(frame + 14, 0, 28);
    frame[14] = 0x45;
    put16(frame + 16, size + 28);
    frame[22] = 64;
    frame[23] = 17;
    memcpy(frame + 26, &from, 4);
    memcpy(frame + 30, &to, 4);
    for (int i = 14; i < 34; i += 2)
        sum += get16(frame + i);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum += sum >> 16;
    put16(frame + 24, ~sum & 0xFFFF);
    put16(frame + 34, sport);
    put16(frame + 36, dport);
    put16(frame + 38, size + 8);
    size += IP_HEAD;
    if (size < 60)
        memset(frame + size, 0, 60 - size);
    return size < 60 ? 60 : size;
}

struct dhcp_asks {
    const uint8_t *mac, *options;  /* what firmware says, without type, address, server, identity */
    uint32_t options_bytes, xid, wanted, server;
    int type, broadcast;
};

static uint32_t put_dhcp(uint8_t *frame, const struct dhcp_asks *asks)
{
    static const uint8_t everybody[6] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    uint8_t *dhcp = frame + IP_HEAD, *at = dhcp + DHCP_FIXED;
    memset(dhcp, 0, DHCP_FIXED);
    dhcp[0] = dhcp[1] = 1;
    dhcp[2] = 6;
    memcpy(dhcp + 4, &asks->xid, 4);
    dhcp[10] = asks->broadcast ? 0x80 : 0;
    memcpy(dhcp + 28, asks->mac, 6);
    memcpy(dhcp + 236, "\x63\x82\x53\x63", 4);
    *at++ = 53, *at++ = 1, *at++ = (uint8_t)asks->type;
    if (asks->type == REQUEST) {
        *at++ = 50, *at++ = 4, memcpy(at, &asks->wanted, 4), at += 4;
        *at++ = 54, *at++ = 4, memcpy(at, &asks->server, 4), at += 4;
    }
    *at++ = 61, *at++ = 7, *at++ = 1, memcpy(at, asks->mac, 6), at += 6;
    *at++ = 97, *at++ = 17, memset(at, 0, 17), memcpy(at + 11, asks->mac, 6), at += 17;
    memcpy(at, asks->options, asks->options_bytes), at += asks->options_bytes;
    *at++ = 255;
    return put_udp(frame, everybody, asks->mac, 0, 0xFFFFFFFF, 68, 67, (uint32_t)(at - dhcp));
}

/* An option's value, or NULL; only where its length is right. */
static const uint8_t *dhcp_option(const uint8_t *dhcp, uint32_t size, int code, uint32_t need)
{
    for (uint32_t at = DHCP_FIXED; at + 2 <= size && dhcp[at] != 255;) {
        if (dhcp[at] == 0) {
            at++;
            continue;
        }
        if (dhcp[at] == code && dhcp[at + 1] == need && at + 2 + need <= size)
            return dhcp + at + 2;
        at += 2 + dhcp[at + 1];
    }
    return NULL;
}

/* A read request with blksize and tsize; the frame's length. */
static uint32_t put_read_request(uint8_t *frame, const uint8_t *dst, const uint8_t *src, uint32_t from,
                                 uint32_t to, uint32_t port, const char *name, uint32_t blksize)
{
    char *at = (char *)frame + IP_HEAD;
    *at++ = 0, *at++ = 1;
    at += sprintf(at, "%s", name) + 1;
    at += sprintf(at, "octet") + 1;
    at += sprintf(at, "blksize") + 1;
    at += sprintf(at, "%u", blksize) + 1;
    at += sprintf(at, "tsize") + 1;
    at += sprintf(at, "0") + 1;
    return put_udp(frame, dst, src, from, to, port, 69, (uint32_t)(at - (char *)frame) - IP_HEAD);
}

#endif
