/* A PACKET_TX_RING: a batch of frames goes out with one system call, each ready in a slot of its own.

   A virtio header before each frame says that all of it is "header": so the kernel copies it into one
   piece of memory, and does not send the slot's own page, which veth would have to copy once more. */
#ifndef BENCH_SENDRING_H
#define BENCH_SENDRING_H

#include "ring.h"

#include <linux/virtio_net.h>

/* Where a slot's bytes begin: TPACKET2_HDRLEN less a sockaddr_ll (packet_mmap.rst). */
#define SLOT_HEAD (TPACKET2_HDRLEN - sizeof(struct sockaddr_ll))

struct send_ring {
    uint8_t *map;
    uint32_t slot_bytes, slots, at; /* at: the next one to use */
    int fd;
    struct sockaddr_ll to;
};

/* `slots` slots, for frames of up to `most` bytes. Nothing is received here. */
static struct send_ring open_send_ring(const char *interface, uint32_t slots, uint32_t most)
{
    struct send_ring ring = {.slots = slots, .slot_bytes = 128};
    uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);
    int buffer = 64 << 20;

    while (ring.slot_bytes < most + SLOT_HEAD + sizeof(struct virtio_net_hdr))
        ring.slot_bytes *= 2;
    uint32_t block = ring.slot_bytes > page ? ring.slot_bytes : page;
    struct tpacket_req request = {block, slots * ring.slot_bytes / block, ring.slot_bytes, slots};
    ring.fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (ring.fd < 0)
        die("packet socket");
    option(ring.fd, PACKET_VERSION, TPACKET_V2);
    option(ring.fd, PACKET_QDISC_BYPASS, 1);
    option(ring.fd, PACKET_VNET_HDR, 1);
    setsockopt(ring.fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    if (setsockopt(ring.fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof request))
        die("send ring");
    ring.map = mmap(NULL, (size_t)slots * ring.slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                    ring.fd, 0);
    if (ring.map == MAP_FAILED)
        die("send ring");
    memset(ring.map, 0, (size_t)slots * ring.slot_bytes);
    ring.to.sll_family = AF_PACKET;
    ring.to.sll_protocol = htons(ETHERTYPE_AOE);
    ring.to.sll_ifindex = (int)if_nametoindex(interface);
    struct sockaddr_ll silent = {.sll_family = AF_PACKET, .sll_ifindex = ring.to.sll_ifindex};
    if (!silent.sll_ifindex || bind(ring.fd, (struct sockaddr *)&silent, sizeof silent))
        die(interface);
    return ring;
}

static inline struct tpacket2_hdr *send_ring_slot(struct send_ring *ring, uint32_t ahead)
{
    uint32_t at = (ring->at + ahead) % ring->slots;
    return (struct tpacket2_hdr *)(ring->map + (size_t)at * ring->slot_bytes);
}

/* Where the frame `ahead` of the next one is to be put; NULL while the last one there is on its way. */
static inline uint8_t *send_ring_place(struct send_ring *ring, uint32_t ahead)
{
    struct tpacket2_hdr *head = send_ring_slot(ring, ahead);
    if (__atomic_load_n(&head->tp_status, __ATOMIC_ACQUIRE) != TP_STATUS_AVAILABLE)
        return NULL;
    return (uint8_t *)head + SLOT_HEAD + sizeof(struct virtio_net_hdr);
}

/* The frame at that place is ready, `size` bytes. */
static inline void send_ring_ready(struct send_ring *ring, uint32_t ahead, uint32_t size)
{
    struct tpacket2_hdr *head = send_ring_slot(ring, ahead);
    struct virtio_net_hdr *hint = (struct virtio_net_hdr *)((uint8_t *)head + SLOT_HEAD);
    hint->hdr_len = (uint16_t)size;
    head->tp_len = (uint32_t)(size + sizeof *hint);
    __atomic_store_n(&head->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
}

/* Send the next `count` frames, all ready; again what the kernel had no room for. */
static inline void send_ring_go(struct send_ring *ring, uint32_t count)
{
    for (uint32_t sent = 0; sent < count;) {
        if (sendto(ring->fd, NULL, 0, MSG_DONTWAIT, (struct sockaddr *)&ring->to, sizeof ring->to) < 0 &&
            errno != EINTR && errno != ENOBUFS && errno != EAGAIN)
            die("send");
        while (sent < count && !(__atomic_load_n(&send_ring_slot(ring, sent)->tp_status, __ATOMIC_ACQUIRE) &
                                 (TP_STATUS_SEND_REQUEST | TP_STATUS_WRONG_FORMAT)))
            sent++;
    }
    ring->at = (ring->at + count) % ring->slots;
}

#endif
