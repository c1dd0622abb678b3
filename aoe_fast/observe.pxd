"""Statistics for each client and each binding, taken beside the data path."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch
from .clients cimport Clients


cdef bint is_greedy(
    Clients *clients, const uint8_t *frame, int64_t arrived, uint32_t patience
) noexcept nogil
cdef void note_frame(
    Clients *clients, Batch *batch, uint32_t first, const uint8_t *frame, uint32_t size,
    int64_t arrived
) noexcept nogil
cdef void note_sent(Batch *batch) noexcept nogil
cdef int64_t realtime() noexcept nogil
