"""Side threads for writes that must wait for a disk."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .clients cimport Client
from .residency cimport is_resident
from .ring cimport Outbox
from .store cimport Backing, pthread_mutex_t
from .syncer cimport Queue, pthread_cond_t
from .view cimport Row
from .wire cimport SECTOR


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)


cdef enum:
    LANES = 64
    PARKERS = 4


# A write and the acknowledgement that it will get; the payload follows.
cdef struct Parked:
    Parked *next
    Row *row
    Client *client
    int64_t arrived
    uint64_t sector
    uint32_t size
    int fd
    uint8_t head[60]


# The writes of one export, in their order of arrival; holds the backing.
cdef struct Lane:
    Lane *chain                 # of its bucket
    Lane *next                  # in the line for a thread
    Backing *backing
    Parked *first
    Parked **last
    bint running                # a thread is at it: one at a time
    bint in_line


# What the workers hand over; guarded by the lock.
cdef struct Parking:
    pthread_mutex_t lock
    pthread_cond_t wake
    Lane *buckets[64]
    Lane *first                 # the line
    Lane **last
    uint64_t bytes              # waiting
    uint64_t taken              # handed over so far
    uint64_t done               # written, and answered or waiting for their sync
    int stop


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
