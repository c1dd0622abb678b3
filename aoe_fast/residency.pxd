"""Which parts of an image are known to be in the page cache: one bit for each 64 KiB."""

from libc.stdint cimport uint32_t, uint64_t

from .store cimport Backing


cdef enum:
    # A chunk is 64 KiB; a word of the map is 4 MiB, looked up with one mincore.
    CHUNK_SECTORS_LOG2 = 7
    CHUNK_BYTES = 1 << 16


cdef inline bint is_resident(
    const Backing *backing, uint64_t sector, uint32_t size
) noexcept nogil:
    """Whether ``size`` bytes at ``sector`` can be sent without waiting for a disk.

    One look at one bit, two where the read crosses 64 KiB. A stale bit costs one stall.
    """
    cdef uint64_t first = sector >> CHUNK_SECTORS_LOG2
    cdef uint64_t last = (sector + (size - 1) // 512) >> CHUNK_SECTORS_LOG2
    if backing.resident == NULL:
        return True
    if not (backing.resident[first >> 6] >> (first & 63)) & 1:
        return False
    return first == last or (backing.resident[last >> 6] >> (last & 63)) & 1


cdef void look_at(Backing *backing, uint64_t first, uint32_t many) noexcept nogil
