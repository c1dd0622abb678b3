"""handle(frame) -> replies: the whole protocol, no socket."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from .batch cimport Batch, Counters
from .view cimport Views


cdef uint32_t handle(Batch *batch, const uint8_t *frame, uint32_t size) noexcept nogil


cdef class Target:
    cdef Views views
    cdef readonly uint16_t bufcnt
    cdef readonly bint wire_config
    cdef readonly bint wire_reserve
    cdef readonly object state
    cdef object _stats
    cdef Batch *_batch
    cdef Counters _counters
    cdef int prepare(self, Batch *batch, uint32_t mtu) except -1
