"""Side threads that bring in what is not in memory, and answer for it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .line cimport Late, Line
from .outbox cimport Outbox
from .store cimport Backing


# A read whose data must be fetched; holds the backing.
cdef struct Fetch:
    Late late
    Backing *backing
    uint64_t sector
    uint32_t size


# What the workers hand to the fetch threads.
cdef struct Fetches:
    Line line


cdef Fetches *new_fetches() except NULL
cdef void free_fetches(Fetches *fetches) noexcept nogil
cdef void stop_fetches(Fetches *fetches) noexcept nogil
cdef bint hand_over(Fetches *fetches, const Reply *reply, int fd) noexcept nogil
cdef void fetch_loop(Fetches *fetches, Batch *batch, Outbox *outbox) noexcept nogil
