"""Requests of clients that ask for more than their share, to be served after the others."""

from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:
    BACKLOG_FRAMES = 1024
    # The ring of requests has frames of 128 bytes, the kernel's header included.
    BACKLOG_BYTES = 104
    # So many are served in a batch even while others wait: postponed, not starved.
    BACKLOG_SHARE = 4


cdef struct Postponed:
    int64_t arrived
    uint32_t size
    uint8_t frame[104]


cdef struct Backlog:
    uint32_t first
    uint32_t count
    Postponed frames[1024]


cdef bint postpone(
    Backlog *backlog, const uint8_t *frame, uint32_t size, int64_t arrived
) noexcept nogil
cdef const Postponed *next_postponed(Backlog *backlog) noexcept nogil
