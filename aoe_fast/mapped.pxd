"""Writes straight into the mapping, where they are many, and it is safe and in memory."""

from libc.stdint cimport uint8_t, uint64_t

from .batch cimport Batch
from .store cimport Backing


cdef int put_write(
    Batch *batch, Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil
