"""The way out for what fits a slot: copied there, and one system call for a whole batch."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from .guard cimport iovec


cdef extern from "<linux/if_packet.h>" nogil:
    struct sockaddr_ll:
        uint16_t sll_family
        uint16_t sll_protocol
        int32_t sll_ifindex


cdef struct SendRingState:
    uint8_t *map                # NULL: there is none
    size_t map_bytes
    uint32_t slot_bytes
    uint32_t slots
    uint32_t at                 # the slot that is filled next; the kernel looks there, too
    int fd
    sockaddr_ll to              # says the frames' protocol: else the kernel looks into each


cdef uint32_t send_ring_put(
    SendRingState *ring, const iovec *parts, uint32_t count
) noexcept nogil


cdef class SendRing:
    cdef SendRingState state
    cdef object socket
