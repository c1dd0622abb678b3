"""Copies to and from shared mappings that end with a word instead of SIGBUS.

A file that was truncated, a disk that is bad or full: where read(2) or write(2) would say so, a
mapping raises a signal. This module has the process's one handler for it (guard.h); whatever else
takes the signal over is noticed, and nothing is copied until it gives it back.
"""


cdef extern from "guard.h" nogil:
    void aoe_guard_install()
    int aoe_guard_holds()
    void aoe_guard_unblock()
    int aoe_guarded_copy(void *to, const void *source, size_t size)
    uint32_t aoe_guarded_gather(uint8_t *const *to, const iovec *parts, uint32_t count)


cdef void let_faults_through() noexcept nogil:
    """Make this thread able to survive a mapping that refuses."""
    aoe_guard_unblock()


cdef bint is_guarded(uint8_t *known) noexcept nogil:
    """Whether a SIGBUS would come here. ``known``, for one batch: 0 not looked yet, 1 yes, 2 no."""
    if not known[0]:
        # Once for each batch: the signal may have been taken over by somebody.
        known[0] = 1 if aoe_guard_holds() else 2
    return known[0] == 1


cdef int guarded_copy(void *to, const void *source, size_t size) noexcept nogil:
    """Copy into a mapping: 0, or -1 if it could not take all; a part may have been written."""
    return aoe_guarded_copy(to, source, size)


cdef uint32_t guarded_gather(
    uint8_t *const *to, const iovec *parts, uint32_t count
) noexcept nogil:
    """Copy pairs of parts, each pair to a place of its own; how many pairs were there to read.

    Only the second part of a pair may be of a mapping.
    """
    return aoe_guarded_gather(to, parts, count)


aoe_guard_install()
