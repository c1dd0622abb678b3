"""Side threads for writes that must wait for a disk."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .line cimport Late, Line, Link
from .residency cimport is_resident
from .outbox cimport Outbox
from .store cimport Backing
from .syncer cimport Queue
from .wire cimport SECTOR


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)


cdef enum:
    LANES = 64
    PARKERS = 4


# A write and the acknowledgement that it will get; the payload follows.
cdef struct Parked:
    Late late
    Parked *next
    uint64_t sector
    uint32_t size


# The writes of one export, in their order of arrival; holds the backing.
cdef struct Lane:
    Link link                   # in the line for a thread
    Lane *chain                 # of its bucket
    Backing *backing
    Parked *first
    Parked **last
    bint running                # a thread is at it: one at a time
    bint in_line


# What the workers hand over: a line of lanes. done: written, and answered or waiting for their
# sync. The line's lock guards all of it.
cdef struct Parking:
    Line line
    Lane *buckets[64]
    uint64_t bytes              # waiting


cdef inline bint must_park(
    const Backing *backing, uint64_t sector, uint32_t count
) noexcept nogil:
    """Whether a write of ``count`` sectors has to wait for a disk, or for an earlier one that does.

    The kernel reads what is missing of a page before it writes a part of it; a whole page needs
    nothing. While one write of an export waits, all its later ones line up behind.
    """
    cdef uint64_t start = backing.offset + sector * SECTOR
    if aoe_acquire32(&backing.parked):
        return True
    if (start | (count * SECTOR)) & 4095 == 0:
        return False
    return not is_resident(backing, sector, count * SECTOR)


cdef Parking *new_parking() except NULL
cdef void free_parking(Parking *parking) noexcept nogil
cdef void stop_parking(Parking *parking) noexcept nogil
cdef bint park(
    Parking *parking, const Reply *reply, const uint8_t *payload, int fd
) noexcept nogil
cdef void parking_loop(
    Parking *parking, Queue *queue, Batch *batch, Outbox *outbox
) noexcept nogil
