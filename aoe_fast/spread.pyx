"""Answers to broadcasts that are put off by some milliseconds.

A room that discovers at once, or one station that asks for everything, gets thousands of answers
in a burst that no receive queue on the way is made for. The first few leave at once; the others
one after the other, GAP_NS apart, none later than LATEST_NS.
"""

from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from .batch cimport BODY_BYTES, HEAD_BYTES, monotonic
from .memory cimport give, take
from .observe cimport note_sent
from .ring cimport outbox_add, outbox_send
from .store cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef extern from "<pthread.h>" nogil:
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_timedwait(
        pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until
    )


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME


cdef enum:
    GAP_NS = 10000
    LATEST_NS = 20000000
    # So many leave at once after a pause of as many gaps.
    AT_ONCE = 16
    MOST_WAITING = 1 << 16
    # Few at a time, or the burst would only have moved.
    TOGETHER = 16


cdef Spread *new_spread() except NULL:
    cdef Spread *spread = <Spread *>take(sizeof(Spread))
    if spread == NULL:
        raise MemoryError()
    pthread_mutex_init(&spread.lock, NULL)
    pthread_cond_init(&spread.wake, NULL)
    spread.last = &spread.first
    return spread


cdef void free_spread(Spread *spread) noexcept nogil:
    if spread != NULL:
        pthread_cond_destroy(&spread.wake)
        pthread_mutex_destroy(&spread.lock)
        give(spread)


cdef void stop_spread(Spread *spread) noexcept nogil:
    """Have spread_loop send what waits and return."""
    pthread_mutex_lock(&spread.lock)
    spread.stop = 1
    pthread_cond_signal(&spread.wake)
    pthread_mutex_unlock(&spread.lock)


cdef bint put_off(Spread *spread, const Reply *reply, int64_t now, int fd) noexcept nogil:
    """Have the reply sent a little later; False if it should leave now."""
    cdef int64_t due
    cdef Later *node
    pthread_mutex_lock(&spread.lock)
    # A bucket of AT_ONCE tokens, one for each gap that passes without a broadcast answer.
    due = spread.last_due + GAP_NS
    if due < now - AT_ONCE * GAP_NS:
        due = now - AT_ONCE * GAP_NS
    if due > now + LATEST_NS:
        due = now + LATEST_NS
    spread.last_due = due
    if due <= now and spread.first == NULL or spread.taken - spread.done > MOST_WAITING:
        pthread_mutex_unlock(&spread.lock)
        return False
    node = <Later *>take(sizeof(Later)) if reply.size <= BODY_BYTES else NULL
    if node != NULL:
        node.next = NULL
        node.client = reply.client
        node.row = reply.row
        node.arrived = reply.arrived
        node.due = due
        node.fd = fd
        node.head_size = reply.head_size
        node.size = reply.size
        memcpy(node.head, reply.head, HEAD_BYTES)
        if reply.size:
            memcpy(node.body, reply.data, reply.size)
        spread.last[0] = node
        spread.last = &node.next
        spread.taken += 1
        if spread.first == node:
            pthread_cond_signal(&spread.wake)
    pthread_mutex_unlock(&spread.lock)
    return node != NULL


cdef Later *next_due(Spread *spread) noexcept nogil:
    """What is due, up to TOGETHER for one socket, waiting for it; NULL: stopped and empty."""
    cdef Later *first
    cdef Later *last
    cdef timespec until
    cdef int64_t wait
    cdef uint32_t many = 1
    pthread_mutex_lock(&spread.lock)
    while True:
        first = spread.first
        if first == NULL:
            if spread.stop:
                pthread_mutex_unlock(&spread.lock)
                return NULL
            wait = 1000000000
        else:
            wait = first.due - monotonic()
            if wait <= 0 or spread.stop:
                break
        clock_gettime(CLOCK_REALTIME, &until)
        wait += until.tv_nsec
        until.tv_sec += wait // 1000000000
        until.tv_nsec = wait % 1000000000
        pthread_cond_timedwait(&spread.wake, &spread.lock, &until)
    last = first
    while (
        many < TOGETHER and last.next != NULL and last.next.fd == first.fd
        and last.next.due <= first.due + TOGETHER * GAP_NS
    ):
        last = last.next
        many += 1
    spread.first = last.next
    last.next = NULL
    if spread.first == NULL:
        spread.last = &spread.first
    pthread_mutex_unlock(&spread.lock)
    return first


cdef void spread_loop(Spread *spread, Batch *batch, Outbox *outbox) noexcept nogil:
    """Send what is due until told to stop, then the rest. ``batch`` is this thread's own."""
    cdef Later *first
    cdef Later *node
    cdef Reply *reply
    while True:
        first = next_due(spread)
        if first == NULL:
            return
        batch.count = 0
        node = first
        while node != NULL:
            reply = &batch.replies[batch.count]
            memset(reply, 0, sizeof(Reply))
            memcpy(reply.head, node.head, HEAD_BYTES)
            reply.head_size = node.head_size
            reply.data = node.body
            reply.size = node.size
            reply.client = node.client
            reply.row = node.row
            reply.arrived = node.arrived
            outbox_add(outbox, batch, batch.count)
            batch.count += 1
            node = node.next
        outbox_send(outbox, batch, first.fd)
        note_sent(batch)
        batch.counters.spread += batch.count
        while first != NULL:
            node = first.next
            give(first)
            first = node
        pthread_mutex_lock(&spread.lock)
        spread.done += batch.count
        pthread_mutex_unlock(&spread.lock)
