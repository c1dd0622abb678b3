"""A pause before a batch that is far from full, for as long as such pauses pay."""

from libc.stdint cimport int64_t, uint32_t

from .ring cimport RingState


cdef struct Pauses:
    uint32_t skip               # batches that are taken as they come before the next try
    uint32_t step               # the last number of them
    bint paid                   # the last pause filled its batch, and more has come since


cdef bint pause_is_worth(const Pauses *pauses, const RingState *ring) noexcept nogil
cdef bint pause_for_more(
    Pauses *pauses, const RingState *ring, int64_t now, int64_t most
) noexcept nogil


cdef inline void pauses_batch(Pauses *pauses) noexcept nogil:
    """A batch was served."""
    if pauses.skip:
        pauses.skip -= 1


cdef inline void pauses_idle(Pauses *pauses) noexcept nogil:
    """Nothing has come. After a pause that filled a batch: those were all requests that there are,
    and their clients do nothing while the server waits."""
    if pauses.paid:
        pause_failed(pauses)


cdef void pause_failed(Pauses *pauses) noexcept nogil
