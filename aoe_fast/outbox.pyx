"""The replies of one batch on their way out, and what is done with those that cannot go.

From the front as many as can by the ring of slots, if there is one; the rest by sendmmsg, which
gathers header and data by itself: the mapping is touched by the kernel's copy alone, and a part of
an image that is not there any more is an EFAULT for that one reply.
"""

from libc.errno cimport EAGAIN, EFAULT, EINTR, ENOBUFS, errno
from libc.stdlib cimport calloc, free
from posix.unistd cimport usleep

from .batch cimport BATCH_REPLIES, fail_medium
from .guard cimport is_guarded
from .sendring cimport send_ring_put
from .wire cimport SECTOR


cdef extern from "atomics.h" nogil:
    void aoe_prefetch(const void *p)


cdef extern from "<sys/socket.h>" nogil:
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    enum:
        MSG_DONTWAIT


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum:
        POLLOUT


# A batch waits this long for a full socket buffer or device queue, then its replies are lost.
cdef enum:
    SEND_TRIES = 100
    SEND_WAIT_MS = 2
    CACHE_LINE = 64
    # The whole of longer replies than this would be as much as the cache that it goes to.
    PREFETCH_BYTES = 1024


cdef Outbox *new_outbox() except NULL:
    """Room for the replies of one batch; ``free_outbox`` it."""
    cdef Outbox *outbox = <Outbox *>calloc(1, sizeof(Outbox))
    cdef int i
    if outbox != NULL:
        outbox.messages = <mmsghdr *>calloc(BATCH_REPLIES, sizeof(mmsghdr))
        outbox.parts = <iovec *>calloc(2 * BATCH_REPLIES, sizeof(iovec))
        outbox.index = <uint32_t *>calloc(BATCH_REPLIES, sizeof(uint32_t))
        if outbox.messages != NULL and outbox.parts != NULL and outbox.index != NULL:
            for i in range(BATCH_REPLIES):
                outbox.messages[i].msg_hdr.msg_iov = &outbox.parts[2 * i]
            return outbox
        free_outbox(outbox)
    raise MemoryError()


cdef void free_outbox(Outbox *outbox) noexcept nogil:
    if outbox != NULL:
        free(outbox.messages)
        free(outbox.parts)
        free(outbox.index)
        free(outbox)


cdef void prefetch_data(const Reply *reply) noexcept nogil:
    """Have a reply's data on its way into the cache while others are handled.

    Of a long one the first line of each sector: the CPU's own prefetcher follows from there.
    A prefetch never faults, so this is safe for a mapping whose file was truncated, too.
    """
    cdef uint32_t at = 0
    cdef uint32_t step = CACHE_LINE if reply.size <= PREFETCH_BYTES else SECTOR
    if reply.image != NULL:
        while at < reply.size:
            aoe_prefetch(reply.data + at)
            at += step


cdef void outbox_add(Outbox *outbox, Batch *batch, uint32_t reply) noexcept nogil:
    """Queue one of the batch's replies."""
    cdef Reply *source = &batch.replies[reply]
    cdef iovec *parts = &outbox.parts[2 * outbox.count]
    parts[0].iov_base = source.head
    parts[0].iov_len = source.head_size
    parts[1].iov_base = <void *>source.data
    parts[1].iov_len = source.size
    outbox.messages[outbox.count].msg_hdr.msg_iovlen = 2 if source.size else 1
    outbox.index[outbox.count] = reply
    outbox.count += 1


cdef void outbox_send(Outbox *outbox, Batch *batch, int fd) noexcept nogil:
    """Send what is queued and empty the outbox; what cannot be sent is counted."""
    cdef uint32_t total = outbox.count
    cdef uint32_t sent = 0
    cdef uint32_t tries = 0
    cdef pollfd ready
    cdef Reply *reply
    cdef int code
    outbox.count = 0
    # One alone is gone sooner without the look at the guard and the copy: it is waited for.
    if total > 1 and outbox.ring != NULL and is_guarded(&batch.guarded):
        sent = send_ring_put(outbox.ring, outbox.parts, total)
        batch.counters.replies += sent
    while sent < total:
        code = sendmmsg(fd, &outbox.messages[sent], total - sent, MSG_DONTWAIT)
        if code > 0:
            batch.counters.replies += <uint32_t>code
            sent += <uint32_t>code
            tries = 0
            continue
        if errno == EINTR:
            continue
        if (errno == EAGAIN or errno == ENOBUFS) and tries < SEND_TRIES:
            # A full socket buffer wakes poll; a full device queue does not say when it drains.
            tries += 1
            if errno == EAGAIN:
                ready.fd = fd
                ready.events = POLLOUT
                poll(&ready, 1, SEND_WAIT_MS)
            else:
                usleep(50)
            continue
        reply = &batch.replies[outbox.index[sent]]
        if errno == EFAULT and reply.image != NULL and reply.size:
            # The image is shorter than it was, or its disk is bad: an error for this one request.
            fail_medium(batch, reply)
            outbox.messages[sent].msg_hdr.msg_iovlen = 1
            outbox.messages[sent].msg_hdr.msg_iov[0].iov_len = reply.head_size
            continue
        # ENETDOWN, or a queue that stays full: the client asks again. The tries start afresh only
        # when something goes out, so a stuck link holds one batch up once, not each message.
        batch.counters.send_errors += 1
        sent += 1
