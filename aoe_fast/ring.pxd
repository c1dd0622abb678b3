"""AF_PACKET sockets: kernel filter, fanout, RX ring."""

from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:
    REQUESTS = 0    # everything but writes and what is rare: 128-byte frames, small and hot
    PAYLOADS = 1    # writes and every other class: frames of the MTU's size


cdef struct RingState:
    uint8_t *map
    size_t map_bytes
    uint32_t frame_bytes
    uint32_t frames
    uint32_t head
    int fd


cdef const uint8_t *ring_peek(RingState *ring, uint32_t *size) noexcept nogil
cdef int64_t ring_arrival(const RingState *ring) noexcept nogil
cdef bint ring_holds(const RingState *ring, uint32_t frames) noexcept nogil
cdef void ring_pop(RingState *ring) noexcept nogil
cdef uint32_t ring_drops(RingState *ring) noexcept nogil
cdef int socket_error(int fd) noexcept nogil


cdef class Ring:
    cdef RingState state
    cdef object socket
