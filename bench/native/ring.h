/* What the C programs share: AoE frames, a TPACKET_V2 receive ring, clocks, arguments. */
#ifndef BENCH_RING_H
#define BENCH_RING_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ETHERTYPE_AOE 0x88A2
#define SECTOR 512
#define RESPONSE 0x08

struct ata {
    uint8_t dst[6], src[6];
    uint16_t ethertype;
    uint8_t version_flags, error;
    uint16_t shelf;
    uint8_t slot, command;
    uint32_t tag;
    uint8_t aflags, feature, count, status;
    uint8_t lba[6], reserved[2];
} __attribute__((packed));

struct ring {
    uint8_t *map;
    uint32_t frame_bytes, frames, head;
    int fd;
};

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void option(int fd, int name, int value)
{
    if (setsockopt(fd, SOL_PACKET, name, &value, sizeof value))
        die("packet socket option");
}

/* AoE requests or, if `clients` is given, the replies to these clients (the last two bytes of their
   MACs are numbers from `first` on), and nothing else: what is another generator's must not wake this
   one up, nor be copied to it by the server's CPU. */
static void keep_only(int fd, uint32_t first, uint32_t clients)
{
    struct sock_filter code[] = {
        {BPF_LD | BPF_H | BPF_ABS, 0, 0, 12},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 6, ETHERTYPE_AOE},
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 14},
        {BPF_JMP | BPF_JSET | BPF_K, clients ? 0 : 4, clients ? 4 : 3, RESPONSE},
        {BPF_LD | BPF_H | BPF_ABS, 0, 0, 4},
        {BPF_JMP | BPF_JGE | BPF_K, 0, 2, first},
        {BPF_JMP | BPF_JGE | BPF_K, 1, 0, first + clients},
        {BPF_RET | BPF_K, 0, 0, 0x40000},
        {BPF_RET | BPF_K, 0, 0, 0},
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        die("filter");
}

/* A packet socket on `interface` with a ring of at least `frames` frames of `frame_bytes`, a multiple
   of 128: then 32 frames are whole pages, and all frames follow each other without gaps. Of AoE only
   the replies to `clients` clients from number `first` on; 0: requests. */
static struct ring open_ring_for(const char *interface, uint16_t protocol, uint32_t frames,
                                 uint32_t frame_bytes, uint32_t first, uint32_t clients)
{
    struct ring ring = {0};
    uint32_t block = frame_bytes * 32;
    struct tpacket_req request = {block, 0, frame_bytes, 0};
    struct sockaddr_ll address = {0};
    int buffer = 64 << 20;

    ring.fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (ring.fd < 0)
        die("packet socket");
    if (protocol == ETHERTYPE_AOE)
        keep_only(ring.fd, first, clients);
    option(ring.fd, PACKET_VERSION, TPACKET_V2);
    option(ring.fd, PACKET_IGNORE_OUTGOING, 1);
    option(ring.fd, PACKET_QDISC_BYPASS, 1);
    setsockopt(ring.fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    request.tp_block_nr = (uint32_t)(((uint64_t)frames * frame_bytes + block - 1) / block);
    request.tp_frame_nr = request.tp_block_nr * (block / frame_bytes);
    if (setsockopt(ring.fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request))
        die("receive ring");
    ring.map = mmap(NULL, (size_t)block * request.tp_block_nr, PROT_READ | PROT_WRITE, MAP_SHARED,
                    ring.fd, 0);
    if (ring.map == MAP_FAILED)
        die("receive ring");
    ring.frames = request.tp_frame_nr;
    ring.frame_bytes = frame_bytes;
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(protocol);
    address.sll_ifindex = (int)if_nametoindex(interface);
    if (!address.sll_ifindex || bind(ring.fd, (struct sockaddr *)&address, sizeof address))
        die(interface);
    return ring;
}

static inline struct ring open_ring(const char *interface, uint32_t frames, uint32_t frame_bytes,
                                    uint32_t first, uint32_t clients)
{
    return open_ring_for(interface, ETHERTYPE_AOE, frames, frame_bytes, first, clients);
}

/* The frame `ahead` of the next one, or NULL if it has not arrived. */
static inline uint8_t *ring_frame(struct ring *ring, uint32_t ahead, uint32_t *size)
{
    uint32_t at = ring->head + ahead;
    if (at >= ring->frames)
        at -= ring->frames;
    uint8_t *slot = ring->map + (size_t)at * ring->frame_bytes;
    struct tpacket2_hdr *header = (struct tpacket2_hdr *)slot;
    if (!(__atomic_load_n(&header->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
        return NULL;
    *size = header->tp_snaplen;
    return slot + header->tp_mac;
}

/* Have the frame `ahead` of the next one come nearer, whether it has arrived or not: another CPU wrote
   it last. What is behind the first lines follows by itself. */
static inline void ring_fetch(const struct ring *ring, uint32_t ahead)
{
    uint32_t at = ring->head + ahead;
    uint32_t bytes = ring->frame_bytes < 1280 ? ring->frame_bytes : 1280;
    if (at >= ring->frames)
        at -= ring->frames;
    const uint8_t *slot = ring->map + (size_t)at * ring->frame_bytes;
    for (uint32_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(slot + i);
}

static inline void ring_release(struct ring *ring, uint32_t count)
{
    while (count--) {
        struct tpacket2_hdr *header =
            (struct tpacket2_hdr *)(ring->map + (size_t)ring->head * ring->frame_bytes);
        __atomic_store_n(&header->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        if (++ring->head == ring->frames)
            ring->head = 0;
    }
}

/* Frames that a packet socket had no room for since the last look. */
static inline uint32_t socket_lost(int fd)
{
    struct tpacket_stats stats;
    socklen_t size = sizeof stats;
    return getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size) ? 0 : stats.tp_drops;
}

static inline uint32_t ring_lost(struct ring *ring)
{
    return socket_lost(ring->fd);
}

static inline uint64_t get_lba(const struct ata *ata)
{
    uint64_t lba = 0;
    memcpy(&lba, ata->lba, 6);
    return lba;
}

/* "name=value" on the command line, else `otherwise`. */
static const char *text_arg(int argc, char **argv, const char *name, const char *otherwise)
{
    size_t size = strlen(name);
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], name, size) && argv[i][size] == '=')
            return argv[i] + size + 1;
    if (!otherwise) {
        fprintf(stderr, "%s=... is missing\n", name);
        exit(2);
    }
    return otherwise;
}

static double number_arg(int argc, char **argv, const char *name, double otherwise)
{
    char own[32];
    snprintf(own, sizeof own, "%g", otherwise);
    return atof(text_arg(argc, argv, name, own));
}

#endif
