"""The sync threads: durable acknowledgements by group commit, writeback every few seconds."""

from libc.stdint cimport uint32_t, uint64_t

from .batch cimport Batch, Counters
from .line cimport Late, Line, Link
from .outbox cimport Outbox
from .store cimport Backing


# An acknowledgement that waits for its export's sync.
cdef struct Waiting:
    Late late
    Waiting *next
    uint32_t failures           # its export's before it was written


# The acknowledgements of one export that wait for its next sync; holds the backing.
cdef struct Group:
    Link link                   # in the line for a thread
    Group *chain                # of its bucket
    Backing *backing
    Waiting *first
    Waiting **last
    uint32_t running            # bit i: a thread syncs it by descriptor i
    uint32_t owed               # bit i: that thread has to hear of the other one's failure
    bint in_line


# Written and acknowledged, not yet synced; holds the backing.
cdef struct Dirty:
    Dirty *next
    Backing *backing


cdef enum:
    BUCKETS = 256
    # The kernel merges the disk flushes of syncs that run at once: for 64 files 16 ms one after
    # the other, 1.8 ms with 16 threads; with more it is slower again.
    SYNC_THREADS = 12


# What the workers hand to the sync threads: a line of groups; taken and done count
# acknowledgements. The line's lock guards all of it.
cdef struct Queue:
    Line line
    Group *buckets[256]
    Dirty *dirty


cdef Queue *new_queue() except NULL
cdef void free_queue(Queue *queue) noexcept nogil
cdef void stop_queue(Queue *queue) noexcept nogil
cdef void mark_dirty(Queue *queue, Backing *backing) noexcept nogil
cdef void defer(Queue *queue, Batch *batch, Outbox *outbox, int fd) noexcept nogil
cdef void sync_loop(
    Queue *queue, Batch *batch, Outbox *outbox, Counters *counters, bint leads
) noexcept nogil
