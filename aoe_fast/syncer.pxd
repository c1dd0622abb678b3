"""The sync thread: durable acknowledgements by group commit, writeback every few seconds."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from .batch cimport Batch
from .clients cimport Client
from .ring cimport Outbox
from .store cimport Backing, pthread_mutex_t
from .view cimport Row


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass


# An acknowledgement that waits for its export's sync; holds the backing.
cdef struct Waiting:
    Waiting *next
    Backing *backing
    Row *row
    Client *client
    int64_t arrived
    int fd
    uint8_t head[60]


# Written and acknowledged, not yet synced; holds the backing.
cdef struct Dirty:
    Dirty *next
    Backing *backing


# What the workers hand to the sync thread; guarded by the lock.
cdef struct Queue:
    pthread_mutex_t lock
    pthread_cond_t wake
    Waiting *first
    Waiting **last
    Dirty *dirty
    uint64_t taken              # acknowledgements handed over so far
    uint64_t done               # sent so far
    int stop


cdef Queue *new_queue() except NULL
cdef void free_queue(Queue *queue) noexcept nogil
cdef void stop_queue(Queue *queue) noexcept nogil
cdef void mark_dirty(Queue *queue, Backing *backing) noexcept nogil
cdef void defer(Queue *queue, Batch *batch, Outbox *outbox, int fd) noexcept nogil
cdef void sync_loop(Queue *queue, Batch *batch, Outbox *outbox) noexcept nogil
