"""Memory of the C side, counted: tests assert that what was taken was given back."""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free


cdef extern from "atomics.h" nogil:
    int64_t aoe_count(int64_t *p, int64_t n)


cdef int64_t live = 0


def live_blocks():
    """How many blocks are taken at the moment in this process."""
    return live


cdef void *take(size_t size) noexcept nogil:
    """``size`` bytes of zeroes, or NULL; ``give`` them back."""
    cdef void *block = calloc(1, size)
    if block != NULL:
        aoe_count(&live, 1)
    return block


cdef void give(void *block) noexcept nogil:
    """Give back what ``take`` gave; NULL is fine."""
    if block != NULL:
        aoe_count(&live, -1)
        free(block)
