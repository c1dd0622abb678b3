"""AF_PACKET sockets: kernel filter, fanout, RX ring.

Requests without data fit 128-byte ring frames, so thousands of them stay in the cache; what
carries data has a ring with frames of the MTU's size. One fanout group for each interface holds
both rings of every worker, so that each frame is taken once: its program sends writes to the
second kind of ring and spreads clients by source MAC, which keeps one client's frames in order.
Each socket's own filter makes sure of the kind even if the group's order were ever different.
"""

import ctypes
import errno as codes
import os
import socket
import struct

from libc.errno cimport errno
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from .wire cimport ATA_WRITE, ATA_WRITE_EXT, CLASS_ATA, ETHERTYPE_AOE, FLAG_RESPONSE

from .buffers import widen
from .wire import AoeError


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)


cdef extern from "<sys/socket.h>" nogil:
    int getsockopt(int fd, int level, int name, void *value, unsigned int *size)
    enum:
        SOL_SOCKET
        SO_ERROR


cdef extern from "<linux/if_packet.h>" nogil:
    struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        unsigned short tp_mac
        uint32_t tp_sec
        uint32_t tp_nsec
    struct tpacket_stats:
        unsigned int tp_packets
        unsigned int tp_drops
    enum:
        SOL_PACKET
        PACKET_STATISTICS
        TP_STATUS_USER
        TP_STATUS_KERNEL
        TPACKET2_HDRLEN


# linux/if_packet.h, linux/filter.h, asm-generic/socket.h: Python's socket has none of them.
_SOL_PACKET = 263
_PACKET_RX_RING = 5
_PACKET_VERSION = 10
_PACKET_FANOUT = 18
_PACKET_QDISC_BYPASS = 20
_PACKET_FANOUT_DATA = 22
_PACKET_IGNORE_OUTGOING = 23
_TPACKET_V2 = 1
_FANOUT_CBPF = 6
_FANOUT_UNIQUE = 0x2000
_SO_ATTACH_FILTER = 26
_SIOCGIFHWADDR = 0x8927
_SIOCGIFMTU = 0x8921
_LL_OFF = 0xFFE00000  # SKF_LL_OFF: from here offsets count from the MAC header
_PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OTHERHOST = 3

# Classic BPF.
_LDH, _LDB, _LDW, _LEN = 0x28, 0x30, 0x20, 0x80
_JEQ, _JGE, _JSET = 0x15, 0x35, 0x45
_MOD, _ADD, _RET, _RET_A = 0x94, 0x04, 0x06, 0x16


cdef const uint8_t *ring_peek(RingState *ring, uint32_t *size) noexcept nogil:
    """The next received frame and the bytes of it that are there, or NULL."""
    cdef uint8_t *slot = ring.map + <size_t>ring.head * ring.frame_bytes
    cdef tpacket2_hdr *header = <tpacket2_hdr *>slot
    if not aoe_acquire32(&header.tp_status) & TP_STATUS_USER:
        return NULL
    size[0] = header.tp_snaplen
    return slot + header.tp_mac


cdef int64_t ring_arrival(const RingState *ring) noexcept nogil:
    """When the frame that ring_peek showed came in, ns of CLOCK_REALTIME."""
    cdef const tpacket2_hdr *header = <const tpacket2_hdr *>(
        ring.map + <size_t>ring.head * ring.frame_bytes
    )
    return <int64_t>header.tp_sec * 1000000000 + header.tp_nsec


cdef bint ring_holds(const RingState *ring, uint32_t frames) noexcept nogil:
    """Whether at least so many frames have been received; fewer than the ring has slots."""
    cdef uint32_t at = ring.head + frames - 1
    if at >= ring.frames:
        at -= ring.frames
    return (aoe_acquire32(
        &(<const tpacket2_hdr *>(ring.map + <size_t>at * ring.frame_bytes)).tp_status
    ) & TP_STATUS_USER) != 0


cdef void ring_pop(RingState *ring) noexcept nogil:
    """Give the frame that ring_peek showed back to the kernel."""
    cdef uint8_t *slot = ring.map + <size_t>ring.head * ring.frame_bytes
    aoe_release32(&(<tpacket2_hdr *>slot).tp_status, TP_STATUS_KERNEL)
    ring.head = ring.head + 1 if ring.head + 1 < ring.frames else 0


cdef uint32_t ring_drops(RingState *ring) noexcept nogil:
    """Frames lost to a full ring since the last call (packet(7): reading resets)."""
    cdef tpacket_stats stats
    cdef unsigned int size = sizeof(stats)
    if getsockopt(ring.fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size) != 0:
        return 0
    return stats.tp_drops


cdef int socket_error(int fd) noexcept nogil:
    """Take the socket's pending error (an interface that went down), so that poll can sleep."""
    cdef int code = 0
    cdef unsigned int size = sizeof(code)
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size)
    return code


def _program(*instructions):
    """(struct sock_fprog as bytes, what must stay alive while the kernel reads it)."""
    code = b"".join(struct.pack("=HBBI", op, yes, no, value) for op, yes, no, value in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    return struct.pack("@HP", len(instructions), ctypes.addressof(memory)), memory


def _attach(sock, *instructions):
    program, memory = _program(*instructions)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    del memory


def _filter(kind):
    """AoE requests (no R flag) of one kind. Offsets from the Ethernet header.

    A frame of a VLAN that has no interface here comes up on the card itself, without its tag but
    as another host's: the answer would go to another network. VLAN 0 is none, only a priority.
    """
    requests, payloads = (1, 0) if kind == REQUESTS else (0, 1)
    keep = 0x40000
    return (
        (_LDB, 0, 0, _PACKET_TYPE),
        (_JEQ, 13, 0, _OTHERHOST),
        (_LDH, 0, 0, 12),
        (_JEQ, 0, 11, ETHERTYPE_AOE),
        (_LDB, 0, 0, 14),
        (_JSET, 9, 0, FLAG_RESPONSE),
        (_LEN, 0, 0, 0),
        (_JGE, 0, 6, 28),           # too short to be told apart: with the payloads
        (_LDB, 0, 0, 19),
        (_JEQ, 0, 4, CLASS_ATA),
        (_LDB, 0, 0, 27),
        (_JEQ, 2, 0, ATA_WRITE),
        (_JEQ, 1, 0, ATA_WRITE_EXT),
        (_RET, 0, 0, keep * requests),
        (_RET, 0, 0, keep * payloads),
        (_RET, 0, 0, 0),
    )


def _demultiplexer(workers):
    """The ring's place in the group: REQUESTS or PAYLOADS of worker (source MAC mod workers).

    The group's program sees offsets from the network header.
    """
    spread = ((_LDW, 0, 0, _LL_OFF + 8), (_MOD, 0, 0, workers))
    return (
        (_LEN, 0, 0, 0),
        (_JGE, 0, 6, 14),
        (_LDB, 0, 0, 5),
        (_JEQ, 0, 4, CLASS_ATA),
        (_LDB, 0, 0, 13),
        (_JEQ, 2, 0, ATA_WRITE),
        (_JEQ, 1, 0, ATA_WRITE_EXT),
        (0x05, 0, 0, 4),            # jump to the requests' part
        *spread,
        (_ADD, 0, 0, workers),
        (_RET_A, 0, 0, 0),
        *spread,
        (_RET_A, 0, 0, 0),
    )


def link(interface):
    """(MAC, MTU) of ``interface``; AoeError if there is none or it is no Ethernet."""
    import fcntl  # here alone: the module's users need no ioctl

    request = interface.encode()
    if not 0 < len(request) < 16:
        raise AoeError(f"interface {interface!r}: names have 1 to 15 characters")
    request = struct.pack("16s24x", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, request)
            mtu = struct.unpack_from("@i", fcntl.ioctl(probe, _SIOCGIFMTU, request), 16)[0]
        except OSError:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise AoeError(f"no interface {interface!r}: there are {names}") from None
    family = struct.unpack_from("@H", answer, 16)[0]
    if family not in (1, 772):
        raise AoeError(f"{interface}: is not Ethernet: name an Ethernet interface or a bridge")
    return answer[18:24], mtu


cdef class Ring:
    """One packet socket with its RX ring, closed to traffic until ``open_group``.

    kind: REQUESTS or PAYLOADS. AoeError: no privilege, no such interface, no memory.
    """

    def __cinit__(self):
        self.state.fd = -1
        self.state.map = NULL

    def __init__(self, interface, int kind, uint32_t frames, uint32_t frame_bytes):
        block = max(os.sysconf("SC_PAGE_SIZE") * 16, frame_bytes)
        blocks = max(1, frames * frame_bytes // block)
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except PermissionError:
            raise AoeError("raw sockets need CAP_NET_RAW: run as root") from None
        try:
            # Nothing comes in before the group and the filter say what is whose.
            _attach(self.socket, (_RET, 0, 0, 0))
            self._option(_PACKET_VERSION, _TPACKET_V2)
            self._option(_PACKET_IGNORE_OUTGOING, 1)
            self._option(_PACKET_QDISC_BYPASS, 1)
            widen(self.socket, socket.SO_SNDBUF, 8 << 20)
            self.socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, struct.pack(
                "=IIII", block, blocks, frame_bytes, blocks * block // frame_bytes
            ))
            self.state.map_bytes = <size_t>(blocks * block)
            self.state.frames = blocks * block // frame_bytes
            self.state.frame_bytes = frame_bytes
            self._map()
            self.socket.bind((interface, ETHERTYPE_AOE))
        except OSError as error:
            self.close()
            if error.errno == codes.ENODEV:
                raise AoeError(f"no interface {interface!r}: check its name") from None
            if error.errno == codes.ENOMEM:
                raise AoeError("no memory for the receive ring: ask for fewer frames") from None
            raise AoeError(
                f"{interface}: cannot be listened on ({error.strerror}): "
                "check that it is there and that this is root"
            ) from None

    def _option(self, name, value):
        self.socket.setsockopt(_SOL_PACKET, name, value)

    def _map(self):
        cdef void *start = mmap(
            NULL, self.state.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.socket.fileno(), 0
        )
        if start == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.state.map = <uint8_t *>start
        self.state.fd = self.socket.fileno()

    def close(self):
        """Give the socket and the ring back; closing twice is fine."""
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


def open_group(requests, payloads):
    """Let traffic in: one fanout group of one worker's rings each, in the workers' order."""
    rings = [*requests, *payloads]
    unique = _FANOUT_UNIQUE
    group = 0
    for ring in rings:
        ring_socket = (<Ring>ring).socket
        ring_socket.setsockopt(
            _SOL_PACKET, _PACKET_FANOUT, struct.pack("=HH", group, _FANOUT_CBPF | unique)
        )
        if unique:
            group = ring_socket.getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF
            unique = 0
            program, memory = _program(*_demultiplexer(len(requests)))
            ring_socket.setsockopt(_SOL_PACKET, _PACKET_FANOUT_DATA, program)
            del memory
    for kind, members in ((PAYLOADS, payloads), (REQUESTS, requests)):
        for ring in members:
            _attach((<Ring>ring).socket, *_filter(kind))
