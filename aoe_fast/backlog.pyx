"""Requests of clients that ask for more than their share, to be served after the others.

Only reads and other requests without data come here, so their order does not matter; writes keep
theirs in a ring of their own.
"""

from libc.string cimport memcpy


cdef bint postpone(
    Backlog *backlog, const uint8_t *frame, uint32_t size, int64_t arrived
) noexcept nogil:
    """Keep a copy; False if there is no room: its client has a thousand waiting already."""
    cdef Postponed *slot
    if backlog.count == BACKLOG_FRAMES or size > BACKLOG_BYTES:
        return False
    slot = &backlog.frames[(backlog.first + backlog.count) % BACKLOG_FRAMES]
    slot.arrived = arrived
    slot.size = size
    memcpy(slot.frame, frame, size)
    backlog.count += 1
    return True


cdef const Postponed *next_postponed(Backlog *backlog) noexcept nogil:
    """Take the oldest; valid until the next ``postpone``. NULL: none."""
    cdef Postponed *slot
    if backlog.count == 0:
        return NULL
    slot = &backlog.frames[backlog.first]
    backlog.first = (backlog.first + 1) % BACKLOG_FRAMES
    backlog.count -= 1
    return slot
