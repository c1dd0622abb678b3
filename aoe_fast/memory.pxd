"""Memory of the C side, counted."""

cdef void *take(size_t size) noexcept nogil
cdef void give(void *block) noexcept nogil
