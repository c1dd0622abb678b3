"""Copies to and from shared mappings that end with a word instead of SIGBUS."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef void let_faults_through() noexcept nogil
cdef bint is_guarded(uint8_t *known) noexcept nogil
cdef int guarded_copy(void *to, const void *source, size_t size) noexcept nogil
cdef uint32_t guarded_gather(
    uint8_t *const *to, const iovec *parts, uint32_t count
) noexcept nogil
