"""The way out for what fits a slot: PACKET_TX_RING, one system call for a whole batch.

sendmmsg costs a tenth of a 1 KiB read for its messages alone (headers, parts, security hooks), and
puts longer frames together from pages. Here the frame lies ready in a slot, and the virtio header
before it (PACKET_VNET_HDR) tells the kernel that all of it is "header": so it is copied into one
piece of memory. Without that word the kernel would send the slot's own pages, and veth, or a
bridge's tap, would have to copy each of them once more.

A slot is the driver's until the frame has left. What finds none, or is longer, goes by sendmmsg;
so does what the kernel did not take, as the errors of that path say more. A socket with such a ring
can send in no other way: it is one of its own, which receives nothing.
"""

import os
import socket
import struct

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint16_t
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from .guard cimport guarded_gather, let_faults_through
from .wire cimport ETHERTYPE_AOE

from .buffers import widen


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    ssize_t sendto(
        int fd, const void *data, size_t size, int flags, const sockaddr *to, unsigned int to_size
    )
    enum:
        MSG_DONTWAIT


cdef extern from "<linux/if_packet.h>" nogil:
    struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
    enum:
        TP_STATUS_AVAILABLE
        TP_STATUS_SEND_REQUEST
        TP_STATUS_WRONG_FORMAT


cdef extern from "<linux/virtio_net.h>" nogil:
    struct virtio_net_hdr:
        uint16_t hdr_len


cdef enum:
    # Where a slot's bytes begin: TPACKET2_HDRLEN less a sockaddr_ll (packet_mmap.rst).
    SLOT_HEAD = 32
    # Of a slot that the kernel was told of and did not take; without these it is on its way or out.
    REFUSED = TP_STATUS_SEND_REQUEST | TP_STATUS_WRONG_FORMAT
    # What is copied before the kernel is told: as much as a worker takes at once.
    RUN = 32
    # All slots are used in turn, so their memory is what they take of the cache.
    MOST_BYTES = 256 << 10
    LEAST_SLOTS = 32

# linux/if_packet.h: Python's socket has none of them.
_SOL_PACKET = 263
_PACKET_VERSION = 10
_PACKET_TX_RING = 13
_PACKET_VNET_HDR = 15
_PACKET_QDISC_BYPASS = 20
_TPACKET_V2 = 1


cdef inline tpacket2_hdr *slot_at(const SendRingState *ring, uint32_t ahead) noexcept nogil:
    """The header of the slot that many after the next one; fewer than there are."""
    cdef uint32_t at = ring.at + ahead
    if at >= ring.slots:
        at -= ring.slots
    return <tpacket2_hdr *>(ring.map + <size_t>at * ring.slot_bytes)


cdef uint32_t send_ring_put(
    SendRingState *ring, const iovec *parts, uint32_t count
) noexcept nogil:
    """Send ``count`` frames, two parts each; how many went out, all of them before the others.

    The second part may be a mapping's: what it does not have does not go out, nor what follows.
    The thread's SIGBUS comes to the guard.
    """
    cdef uint32_t done = 0
    cdef uint32_t run
    cdef uint32_t sent
    while done < count:
        run = min(<uint32_t>RUN, count - done)
        sent = put_run(ring, parts + 2 * done, run)
        done += sent
        if sent < run:
            break
    return done


cdef uint32_t put_run(SendRingState *ring, const iovec *parts, uint32_t count) noexcept nogil:
    cdef uint8_t *places[RUN]
    cdef tpacket2_hdr *head
    cdef virtio_net_hdr *hint
    cdef uint32_t ready = 0
    cdef uint32_t sent = 0
    cdef uint32_t i
    cdef size_t size
    while ready < count:
        size = parts[2 * ready].iov_len + parts[2 * ready + 1].iov_len
        head = slot_at(ring, ready)
        if (
            size + SLOT_HEAD + sizeof(virtio_net_hdr) > ring.slot_bytes
            or aoe_acquire32(&head.tp_status) != TP_STATUS_AVAILABLE
        ):
            break
        hint = <virtio_net_hdr *>(<uint8_t *>head + SLOT_HEAD)
        hint.hdr_len = <uint16_t>size
        head.tp_len = <uint32_t>(size + sizeof(virtio_net_hdr))
        places[ready] = <uint8_t *>hint + sizeof(virtio_net_hdr)
        ready += 1
    ready = guarded_gather(places, parts, ready)
    if ready == 0:
        return 0
    for i in range(ready):
        aoe_release32(&slot_at(ring, i).tp_status, TP_STATUS_SEND_REQUEST)
    while sendto(
        ring.fd, NULL, 0, MSG_DONTWAIT, <const sockaddr *>&ring.to, sizeof(ring.to)
    ) < 0 and errno == EINTR:
        pass
    while sent < ready and not aoe_acquire32(&slot_at(ring, sent).tp_status) & REFUSED:
        sent += 1
    # The kernel stays at the first one that it could not take: so do we.
    for i in range(sent, ready):
        aoe_release32(&slot_at(ring, i).tp_status, TP_STATUS_AVAILABLE)
    ring.at += sent
    if ring.at >= ring.slots:
        ring.at -= ring.slots
    return sent


cdef class SendRing:
    """A packet socket that sends on ``interface`` from slots of ``slot_bytes``, a power of two.

    OSError: no privilege, no such interface, no memory, a kernel that cannot.
    """

    def __cinit__(self):
        self.state.fd = -1
        self.state.map = NULL

    def __init__(self, interface, uint32_t slot_bytes):
        cdef void *start
        cdef uint32_t slots = max(<uint32_t>LEAST_SLOTS, <uint32_t>MOST_BYTES // slot_bytes)
        block = max(os.sysconf("SC_PAGE_SIZE"), slot_bytes)
        blocks = slots * slot_bytes // block
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            for option, value in (
                (_PACKET_VERSION, _TPACKET_V2),
                (_PACKET_QDISC_BYPASS, 1),
                (_PACKET_VNET_HDR, 1),
                (_PACKET_TX_RING, struct.pack("=IIII", block, blocks, slot_bytes, slots)),
            ):
                self.socket.setsockopt(_SOL_PACKET, option, value)
            widen(self.socket, socket.SO_SNDBUF, 8 << 20)
            start = mmap(
                NULL, slots * slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                self.socket.fileno(), 0,
            )
            if start == MAP_FAILED:
                raise OSError(errno, os.strerror(errno))
            self.state.map = <uint8_t *>start
            self.state.map_bytes = slots * slot_bytes
            self.state.slot_bytes = slot_bytes
            self.state.slots = slots
            self.state.fd = self.socket.fileno()
            # The virtio headers: no offloads.
            memset(start, 0, self.state.map_bytes)
            self.socket.bind((interface, 0))
            self.state.to.sll_family = socket.AF_PACKET
            self.state.to.sll_protocol = socket.htons(ETHERTYPE_AOE)
            self.state.to.sll_ifindex = socket.if_nametoindex(interface)
        except BaseException:
            self.close()
            raise

    def put(self, frames):
        """Send whole frames, at most RUN; how many went out. For tests: workers need no GIL."""
        cdef iovec parts[2 * RUN]
        cdef const uint8_t[:] view
        held = [bytes(frame) for frame in frames]
        if len(held) > RUN or not all(held):
            raise ValueError(f"{len(held)} frames: 1 to {RUN} bytes each")
        memset(parts, 0, sizeof(parts))
        for i, frame in enumerate(held):
            view = frame
            parts[2 * i].iov_base = <void *>&view[0]
            parts[2 * i].iov_len = len(frame)
        let_faults_through()
        return send_ring_put(&self.state, parts, len(held))

    def close(self):
        """Give the socket and the ring back; closing twice is fine. Nobody sends any more."""
        if self.state.map != NULL:
            munmap(self.state.map, self.state.map_bytes)
            self.state.map = NULL
        self.state.fd = -1
        if self.socket is not None:
            self.socket.close()

    def __dealloc__(self):
        # The socket object closes itself.
        if self.state.map != NULL:
            munmap(self.state.map, self.state.map_bytes)


def open_send_ring(interface, slot_bytes):
    """A SendRing, or None where the kernel has none for us: sendmmsg does for all."""
    try:
        return SendRing(interface, slot_bytes)
    except OSError:
        return None
