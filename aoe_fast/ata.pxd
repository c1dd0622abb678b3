"""Class 0: ATA commands."""

from libc.stdint cimport uint8_t, uint32_t

from .batch cimport Batch, Reply
from .view cimport Binding, View


cdef void answer_ata(
    Batch *batch, Reply *reply, const View *view, const Binding *binding,
    const uint8_t *frame, uint32_t size
) noexcept nogil
