"""AF_PACKET sockets: kernel filter, fanout, RX ring, batch send."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len


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


# Messages that gather header and data of one batch's replies.
cdef struct Outbox:
    mmsghdr *messages
    iovec *parts
    uint32_t *index             # message -> reply
    uint32_t count


cdef const uint8_t *ring_peek(RingState *ring, uint32_t *size) noexcept nogil
cdef int64_t ring_arrival(const RingState *ring) noexcept nogil
cdef void ring_pop(RingState *ring) noexcept nogil
cdef uint32_t ring_drops(RingState *ring) noexcept nogil
cdef int socket_error(int fd) noexcept nogil

cdef Outbox *new_outbox() except NULL
cdef void free_outbox(Outbox *outbox) noexcept nogil
cdef void prefetch_data(const Reply *reply) noexcept nogil
cdef void outbox_add(Outbox *outbox, Batch *batch, uint32_t reply) noexcept nogil
cdef void outbox_send(Outbox *outbox, Batch *batch, int fd) noexcept nogil


cdef class Ring:
    cdef RingState state
    cdef object socket
