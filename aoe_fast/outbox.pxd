"""The replies of one batch on their way out."""

from libc.stdint cimport uint32_t

from .batch cimport Batch, Reply
from .guard cimport iovec
from .sendring cimport SendRingState


cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len


# Messages that gather header and data of one batch's replies.
cdef struct Outbox:
    mmsghdr *messages
    iovec *parts
    uint32_t *index             # message -> reply
    uint32_t count
    SendRingState *ring         # NULL: sendmmsg alone


cdef Outbox *new_outbox() except NULL
cdef void free_outbox(Outbox *outbox) noexcept nogil
cdef void prefetch_data(const Reply *reply) noexcept nogil
cdef void outbox_add(Outbox *outbox, Batch *batch, uint32_t reply) noexcept nogil
cdef void outbox_send(Outbox *outbox, Batch *batch, int fd) noexcept nogil
