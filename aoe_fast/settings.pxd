"""Classes 1 to 3: what clients may read, and if allowed change, of an export."""

from libc.stdint cimport uint8_t, uint32_t

from .batch cimport Batch, Reply
from .store cimport Backing


cdef void settings_changed() noexcept nogil
cdef bint allows(Backing *backing, const uint8_t *mac) noexcept nogil
cdef bint reserved_for_another(Backing *backing, const uint8_t *mac) noexcept nogil
cdef bint answer_config(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil
cdef void answer_mask(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil
cdef void answer_reserve(
    Batch *batch, Reply *reply, Backing *backing, const uint8_t *frame, uint32_t size
) noexcept nogil
