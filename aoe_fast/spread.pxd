"""Answers to broadcasts that are put off by some milliseconds."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .line cimport Late, Line
from .outbox cimport Outbox


# A reply with its data, due at a time of CLOCK_MONOTONIC.
cdef struct Later:
    Late late
    int64_t due
    uint32_t size
    uint8_t body[1024]


# What the workers put off; guarded by the line's lock.
cdef struct Spread:
    Line line
    int64_t last_due


cdef Spread *new_spread() except NULL
cdef void free_spread(Spread *spread) noexcept nogil
cdef void stop_spread(Spread *spread) noexcept nogil
cdef bint put_off(Spread *spread, const Reply *reply, int64_t now, int fd) noexcept nogil
cdef void spread_loop(Spread *spread, Batch *batch, Outbox *outbox) noexcept nogil
