"""The sync threads: durable acknowledgements by group commit, writeback every few seconds."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Counters
from .clients cimport Client
from .ring cimport Outbox
from .store cimport Backing, pthread_mutex_t
from .view cimport Row


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass


# An acknowledgement that waits for its export's sync.
cdef struct Waiting:
    Waiting *next
    Row *row
    Client *client
    int64_t arrived
    int fd
    uint32_t failures           # its group's, as it was written
    uint8_t head[60]


# The acknowledgements of one export that wait for its next sync; holds the backing.
cdef struct Group:
    Group *chain                # of its bucket
    Group *next                 # in the line for a thread
    Backing *backing
    Waiting *first
    Waiting **last
    uint32_t failures           # syncs of this export that failed
    uint32_t running            # bit i: a thread syncs it by descriptor i
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


# What the workers hand to the sync threads; guarded by the lock.
cdef struct Queue:
    pthread_mutex_t lock
    pthread_cond_t wake
    Group *buckets[256]
    Group *first                # the line
    Group **last
    Dirty *dirty
    uint64_t taken              # acknowledgements handed over so far
    uint64_t done               # sent so far
    int stop


cdef Queue *new_queue() except NULL
cdef void free_queue(Queue *queue) noexcept nogil
cdef void stop_queue(Queue *queue) noexcept nogil
cdef void mark_dirty(Queue *queue, Backing *backing) noexcept nogil
cdef void defer(Queue *queue, Batch *batch, Outbox *outbox, int fd) noexcept nogil
cdef void sync_loop(
    Queue *queue, Batch *batch, Outbox *outbox, Counters *counters, bint leads
) noexcept nogil
