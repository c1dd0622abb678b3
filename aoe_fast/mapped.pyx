"""Writes straight into the mapping, where they are many and it is known to be safe and in memory.

pwrite(2) of 1 KiB costs ten times what copying 1 KiB does. But the first store into a page after
each sync is a fault that costs as much as two pwrites, a page that is not there would be waited
for, and one fault may make a whole big folio dirty. So a chunk of 64 KiB is written through the
mapping only once it is *hot*: HOT pages of it written since the last sync, all of it in memory,
and all of it still in the file. Only writeback exports have such chunks: a durable one is synced
again and again. What the mapping refuses, pwrite is asked for, and says why.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.stat cimport S_ISREG, fstat, struct_stat

from .residency cimport CHUNK_SECTORS_LOG2, is_resident, look_at
from .store cimport Export, backing_write
from .wire cimport SECTOR


cdef extern from "guard.h" nogil:
    void aoe_guard_install()
    int aoe_guard_holds()
    void aoe_guard_unblock()
    int aoe_guarded_copy(void *to, const void *source, size_t size)


cdef enum:
    # Pages written; a chunk has 16. By then pwrite has cost as much as the faults will.
    HOT = 32


cdef void let_faults_through() noexcept nogil:
    """Make this thread able to survive a mapping that refuses a write."""
    aoe_guard_unblock()


cdef int put_write(
    Batch *batch, Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil:
    """Write ``size`` bytes at ``sector`` to the page cache; 0 or the errno (ENOSPC, EIO, ...)."""
    cdef uint64_t first = sector >> CHUNK_SECTORS_LOG2
    cdef uint64_t last = (sector + (size - 1) // SECTOR) >> CHUNK_SECTORS_LOG2
    cdef uint16_t pages = <uint16_t>((size + 4095) // 4096)
    if (
        backing.heat != NULL
        and is_hot(backing, first, pages) and (first == last or is_hot(backing, last, pages))
        and is_resident(backing, sector, <uint32_t>size)
    ):
        if not batch.guarded:
            # Once for each batch: the signal may have been taken over by somebody.
            batch.guarded = 1 if aoe_guard_holds() else 2
        if batch.guarded == 1:
            if aoe_guarded_copy(<void *>(backing.data + sector * SECTOR), source, size) == 0:
                return 0
            backing.heat[first] = 0
            backing.heat[last] = 0
    return backing_write(backing, sector, source, size)


cdef inline bint is_hot(Backing *backing, uint64_t chunk, uint16_t pages) noexcept nogil:
    """Whether the chunk is hot; counts this write. Several workers: a write may be missed."""
    cdef uint16_t heat = backing.heat[chunk]
    if heat >> 8 != backing.syncs:
        heat = <uint16_t>(backing.syncs << 8)
    if heat & 255 >= HOT:
        return True
    heat += pages
    if heat & 255 >= HOT and not is_fit(backing, chunk):
        heat = <uint16_t>(backing.syncs << 8)
    backing.heat[chunk] = heat
    return False


cdef bint is_fit(Backing *backing, uint64_t chunk) noexcept nogil:
    """Whether all of the chunk is in memory, and all of the export in its file."""
    cdef struct_stat state
    if fstat(backing.fd, &state) != 0:
        return False
    if S_ISREG(state.st_mode) and (
        <uint64_t>state.st_size < backing.offset + backing.sectors * SECTOR
    ):
        # A store beyond the end, but in the last page, would be lost without a word.
        return False
    look_at(backing, chunk, 1)
    return is_resident(backing, chunk << CHUNK_SECTORS_LOG2, SECTOR)


def hot_chunks(Export export not None):
    """How many chunks of 64 KiB are written through the mapping at the moment."""
    cdef Backing *backing = export.open_backing()
    cdef uint64_t chunk
    cdef int found = 0
    if backing.heat != NULL:
        for chunk in range((backing.sectors >> CHUNK_SECTORS_LOG2) + 1):
            found += backing.heat[chunk] >> 8 == backing.syncs and backing.heat[chunk] & 255 >= HOT
    return found


aoe_guard_install()
