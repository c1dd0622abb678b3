"""Side threads that bring in what is not in memory, and answer for it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .clients cimport Client
from .ring cimport Outbox
from .store cimport Backing, pthread_mutex_t
from .syncer cimport pthread_cond_t
from .view cimport Row


# A read whose data must be fetched; holds the backing.
cdef struct Fetch:
    Fetch *next
    Backing *backing
    Row *row
    Client *client
    int64_t arrived
    uint64_t sector
    uint32_t size
    uint32_t head_size
    int fd
    uint8_t head[64]


# What the workers hand to the fetch threads; guarded by the lock.
cdef struct Fetches:
    pthread_mutex_t lock
    pthread_cond_t wake
    Fetch *first
    Fetch **last
    uint64_t taken              # handed over so far
    uint64_t done               # answered so far
    int stop


cdef Fetches *new_fetches() except NULL
cdef void free_fetches(Fetches *fetches) noexcept nogil
cdef void stop_fetches(Fetches *fetches) noexcept nogil
cdef bint hand_over(Fetches *fetches, const Reply *reply, int fd) noexcept nogil
cdef void fetch_loop(Fetches *fetches, Batch *batch, Outbox *outbox) noexcept nogil
