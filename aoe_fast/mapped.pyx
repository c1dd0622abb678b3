"""Writes straight into the mapping, where they are many and it is known to be safe and in memory.

pwrite(2) of 1 KiB costs ten times what copying 1 KiB does. But the first store into a page after
each sync is a fault that costs as much as two pwrites, and a page that is not there would be waited
for. So a chunk of 64 KiB is written through the mapping only once it is *hot*: HOT of its 16 pages
were written since the last sync, all of it is in memory and in the file, without a hole, and one
madvise(2) has made all of it writable, for a fifth of what its faults would cost. That makes the
rest of the chunk dirty, too; it goes to the disk in the same transfer.

Only writeback exports have such chunks: a durable one is synced again and again. What the mapping
refuses, pwrite is asked for, and says why.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.types cimport off_t

from .guard cimport guarded_copy, is_guarded
from .residency cimport CHUNK_BYTES, CHUNK_SECTORS_LOG2, is_resident, look_at
from .store cimport Export, backing_write
from .wire cimport SECTOR


cdef extern from *:
    # Of Cython's own C: what is seldom is kept out of the way, and out of line.
    bint unlikely(bint condition) nogil


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *start, size_t size, int advice)


cdef extern from "<unistd.h>" nogil:
    off_t lseek(int fd, off_t offset, int whence)
    enum:
        SEEK_HOLE


cdef enum:
    # Pages of a chunk's 16.
    HOT = 8
    # Of a chunk's heat: bits of pages, then how many, then the syncs; all of the first two: hot.
    MANY_SHIFT = 16
    SYNCS_SHIFT = 24
    IS_HOT = (1 << SYNCS_SHIFT) - 1
    PAGE_BYTES = 4096
    PAGE_SECTORS_LOG2 = 3
    CHUNK_SECTORS = 1 << CHUNK_SECTORS_LOG2
    # Linux 5.14; older kernels refuse, and every write is a pwrite there.
    MADV_POPULATE_WRITE = 23


cdef int put_write(
    Batch *batch, Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil:
    """Write ``size`` bytes at ``sector`` to the page cache; 0 or the errno (ENOSPC, EIO, ...)."""
    if backing.heat != NULL and is_hot(backing, sector, size):
        return copy(batch, backing, sector, source, size)
    return backing_write(backing, sector, source, size)


cdef inline bint is_hot(Backing *backing, uint64_t sector, size_t size) noexcept nogil:
    """Whether the first sector's chunk is hot; counts this write, by its first page and its size.

    Several workers: a page may be missed, or be counted for a sync too early. Both only change
    how soon it gets hot.
    """
    cdef uint32_t *chunk = &backing.heat[sector >> CHUNK_SECTORS_LOG2]
    cdef uint32_t heat = chunk[0]
    cdef uint32_t page = <uint32_t>1 << (
        (<uint32_t>sector & (CHUNK_SECTORS - 1)) >> PAGE_SECTORS_LOG2
    )
    if unlikely(heat >> SYNCS_SHIFT != backing.syncs):
        heat = <uint32_t>backing.syncs << SYNCS_SHIFT
    elif heat & IS_HOT == IS_HOT:
        return True
    if not heat & page:
        heat = (heat | page) + (<uint32_t>((size + PAGE_BYTES - 1) // PAGE_BYTES) << MANY_SHIFT)
        if unlikely((heat & IS_HOT) >> MANY_SHIFT >= HOT):
            heat = heat_up(backing, sector >> CHUNK_SECTORS_LOG2, heat)
        chunk[0] = heat
    return False


cdef int copy(
    Batch *batch, Backing *backing, uint64_t sector, const uint8_t *source, size_t size
) noexcept nogil:
    """Write where the first chunk is hot, into the mapping if the last one is, too."""
    cdef uint64_t last = (sector + size // SECTOR - 1) >> CHUNK_SECTORS_LOG2
    if (
        is_guarded(&batch.guarded)
        and backing.heat[last] == (<uint32_t>backing.syncs << SYNCS_SHIFT | IS_HOT)
        and is_resident(backing, sector, <uint32_t>size)
    ):
        if guarded_copy(<void *>(backing.data + sector * SECTOR), source, size) == 0:
            return 0
        backing.heat[sector >> CHUNK_SECTORS_LOG2] = 0
        backing.heat[last] = 0
    return backing_write(backing, sector, source, size)


cdef uint32_t heat_up(Backing *backing, uint64_t chunk, uint32_t heat) noexcept nogil:
    """The heat of a chunk whose time has come; what cannot be hot begins anew."""
    heat |= IS_HOT
    return heat if make_writable(backing, chunk) else heat - IS_HOT


cdef bint make_writable(Backing *backing, uint64_t chunk) noexcept nogil:
    """Pay for the chunk's faults at once; False if it is not all in memory and in the file."""
    cdef uintptr_t start = <uintptr_t>(backing.data + chunk * CHUNK_BYTES) & ~<uintptr_t>4095
    cdef uintptr_t left = <uintptr_t>backing.map + backing.map_bytes - start
    if not is_in_file(backing, chunk):
        return False
    look_at(backing, chunk, 1)
    return (
        is_resident(backing, chunk << CHUNK_SECTORS_LOG2, SECTOR)
        and madvise(<void *>start, min(left, <uintptr_t>CHUNK_BYTES), MADV_POPULATE_WRITE) == 0
    )


cdef bint is_in_file(const Backing *backing, uint64_t chunk) noexcept nogil:
    """Whether the whole export is in its file still, and the chunk has its blocks.

    A store beyond the end, but in the last page, would be lost without a word. One into a hole
    would take blocks of the disk for what no client has written.
    """
    cdef uint64_t end = backing.offset + backing.sectors * SECTOR
    cdef off_t first = <off_t>(backing.offset + chunk * CHUNK_BYTES)
    cdef struct_stat state
    if fstat(backing.fd, &state) != 0:
        return False
    if not S_ISREG(state.st_mode):
        return True
    end = min(end, <uint64_t>first + <uint64_t>CHUNK_BYTES)
    return (
        <uint64_t>state.st_size >= backing.offset + backing.sectors * SECTOR
        and lseek(backing.fd, first, SEEK_HOLE) >= <off_t>end
    )


def hot_chunks(Export export not None):
    """How many chunks of 64 KiB are written through the mapping at the moment."""
    cdef Backing *backing = export.open_backing()
    cdef uint64_t chunk
    cdef int found = 0
    if backing.heat != NULL:
        for chunk in range((backing.sectors >> CHUNK_SECTORS_LOG2) + 1):
            found += backing.heat[chunk] == (<uint32_t>backing.syncs << SYNCS_SHIFT | IS_HOT)
    return found
