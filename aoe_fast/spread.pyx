"""Answers to broadcasts that are put off by some milliseconds.

A room that discovers at once, or one station that asks for everything, gets thousands of answers
in a burst that no receive queue on the way is made for. The first few leave at once; the others
one after the other, GAP_NS apart, none later than LATEST_NS.
"""

from libc.string cimport memcpy

from .batch cimport BODY_BYTES, monotonic
from .line cimport (
    close_line, keep_late, line_nap, line_put, line_wake, open_line, put_late, stop_line,
)
from .memory cimport give, take
from .observe cimport note_sent
from .outbox cimport outbox_add, outbox_send
from .store cimport pthread_mutex_lock, pthread_mutex_unlock


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
    open_line(&spread.line)
    return spread


cdef void free_spread(Spread *spread) noexcept nogil:
    if spread != NULL:
        close_line(&spread.line)
        give(spread)


cdef void stop_spread(Spread *spread) noexcept nogil:
    """Have spread_loop send what waits and return."""
    stop_line(&spread.line)


cdef bint put_off(Spread *spread, const Reply *reply, int64_t now, int fd) noexcept nogil:
    """Have the reply sent a little later; False if it should leave now."""
    cdef Line *line = &spread.line
    cdef uint32_t wake = 0
    cdef int64_t due
    cdef Later *node
    pthread_mutex_lock(&line.lock)
    # A bucket of AT_ONCE tokens, one for each gap that passes without a broadcast answer.
    due = spread.last_due + GAP_NS
    if due < now - AT_ONCE * GAP_NS:
        due = now - AT_ONCE * GAP_NS
    if due > now + LATEST_NS:
        due = now + LATEST_NS
    spread.last_due = due
    if due <= now and line.first == NULL or line.taken - line.done > MOST_WAITING:
        pthread_mutex_unlock(&line.lock)
        return False
    node = <Later *>take(sizeof(Later)) if reply.size <= BODY_BYTES else NULL
    if node != NULL:
        keep_late(&node.late, reply, fd)
        node.due = due
        node.size = reply.size
        if reply.size:
            memcpy(node.body, reply.data, reply.size)
        # Its thread sleeps until the first is due, whatever stands behind it.
        wake = line.first == NULL
        line_put(line, &node.late.link)
        line.taken += 1
    pthread_mutex_unlock(&line.lock)
    line_wake(line, wake)
    return node != NULL


cdef Later *next_due(Spread *spread) noexcept nogil:
    """What is due, up to TOGETHER for one socket, waiting for it; NULL: stopped and empty."""
    cdef Line *line = &spread.line
    cdef Later *first
    cdef Later *last
    cdef Later *next
    cdef int64_t wait
    cdef uint32_t many = 1
    pthread_mutex_lock(&line.lock)
    while True:
        first = <Later *>line.first
        if first == NULL:
            if line.stop:
                pthread_mutex_unlock(&line.lock)
                return NULL
            wait = 1000000000
        else:
            wait = first.due - monotonic()
            if wait <= 0 or line.stop:
                break
        line_nap(line, wait)
    last = first
    while many < TOGETHER:
        next = <Later *>last.late.link.next
        if (
            next == NULL or next.late.fd != first.late.fd
            or next.due > first.due + TOGETHER * GAP_NS
        ):
            break
        last = next
        many += 1
    line.first = last.late.link.next
    last.late.link.next = NULL
    if line.first == NULL:
        line.last = &line.first
    pthread_mutex_unlock(&line.lock)
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
            reply = put_late(batch, &node.late)
            reply.data = node.body
            reply.size = node.size
            outbox_add(outbox, batch, batch.count - 1)
            node = <Later *>node.late.link.next
        outbox_send(outbox, batch, first.late.fd)
        note_sent(batch)
        batch.counters.spread += batch.count
        while first != NULL:
            node = <Later *>first.late.link.next
            give(first)
            first = node
        pthread_mutex_lock(&spread.line.lock)
        spread.line.done += batch.count
        pthread_mutex_unlock(&spread.line.lock)
