"""Which parts of an image are known to be in the page cache: one bit for each 64 KiB.

mincore(2) for each read would cost as much as the read. So the bits are learnt: at start, from
what the fetch threads brought in, and they are aged out by the server's caretaker. The bit of a
page that was evicted meanwhile costs the worker one wait for the disk; a bit that is missing
costs one trip through a fetch thread. Both heal themselves.
"""

from libc.stdint cimport uint8_t, uintptr_t

from .store cimport Export, backing_hold, backing_release


cdef extern from "<sys/mman.h>" nogil:
    int mincore(void *start, size_t size, unsigned char *into)


cdef extern from "faults.h" nogil:
    int aoe_fault_reads()


cdef enum:
    PAGE = 4096
    WORD_CHUNKS = 64
    WORD_BYTES = WORD_CHUNKS * CHUNK_BYTES
    WORD_PAGES = WORD_BYTES // PAGE


cdef void look_at(Backing *backing, uint64_t first, uint32_t many) noexcept nogil:
    """Ask the kernel about ``many`` chunks from ``first`` on, within one word; sets their bits.

    mincore(2): on a file that this process may not write it says that all is there; then all
    reads are taken for warm. Another page size than 4 KiB: vec has a byte too many, not too few.
    """
    cdef uint8_t pages[WORD_PAGES + 1]
    cdef uintptr_t end = <uintptr_t>backing.map + backing.map_bytes
    cdef uintptr_t start = <uintptr_t>backing.data + first * CHUNK_BYTES
    cdef uintptr_t base = start & ~<uintptr_t>(PAGE - 1)
    cdef uintptr_t page, last
    cdef uint64_t asked = (<uint64_t>-1 >> (64 - many)) << (first & 63)
    cdef uint64_t bits = 0
    cdef uint32_t chunk
    cdef bint all_there
    if backing.resident == NULL or base >= end:
        return
    if aoe_fault_reads():
        # Every read goes through backing_read.
        backing.resident[first >> 6] = 0
        return
    if end - base > many * CHUNK_BYTES + PAGE:
        end = base + many * CHUNK_BYTES + PAGE
    if mincore(<void *>base, end - base, pages) != 0:
        # EAGAIN: next time. ENOMEM cannot be, the range is mapped.
        return
    for chunk in range(many):
        page = (start - base + <uintptr_t>(chunk * CHUNK_BYTES)) // PAGE
        last = (start - base + <uintptr_t>((chunk + 1) * CHUNK_BYTES) + PAGE - 1) // PAGE
        if last > (end - base + PAGE - 1) // PAGE:
            last = (end - base + PAGE - 1) // PAGE
        if page >= last:
            break
        all_there = True
        while all_there and page < last:
            all_there = pages[page] & 1
            page += 1
        if all_there:
            bits |= <uint64_t>1 << chunk
    bits = bits << (first & 63)
    backing.resident[first >> 6] = backing.resident[first >> 6] & ~asked | bits


def scan(Export export not None, uint64_t first, uint64_t budget, bint learn):
    """Look at ``budget`` words (4 MiB each) from ``first`` on; where to go on, or 0 at the end.

    learn: also those of which nothing is known; else only what was known is checked again.
    """
    cdef Backing *backing = export.open_backing()
    cdef uint64_t words = (backing.sectors + WORD_BYTES // 512 - 1) // (WORD_BYTES // 512)
    backing_hold(backing)
    with nogil:
        while first < words and budget:
            if learn or backing.resident != NULL and backing.resident[first]:
                look_at(backing, first * WORD_CHUNKS, WORD_CHUNKS)
                budget -= 1
            first += 1
        backing_release(backing)
    return first if first < words else 0


def known(Export export not None):
    """How many chunks of 64 KiB are known to be in memory; None where all always are."""
    cdef Backing *backing = export.open_backing()
    cdef uint64_t words = (backing.sectors + WORD_BYTES // 512 - 1) // (WORD_BYTES // 512)
    cdef uint64_t word
    if backing.resident == NULL:
        return None
    return sum([bin(backing.resident[word]).count("1") for word in range(words)])
