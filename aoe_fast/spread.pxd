"""Answers to broadcasts that are put off by some milliseconds."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .clients cimport Client
from .ring cimport Outbox
from .store cimport pthread_mutex_t
from .syncer cimport pthread_cond_t
from .view cimport Row


# A reply with its data, due at a time of CLOCK_MONOTONIC.
cdef struct Later:
    Later *next
    Client *client
    Row *row
    int64_t arrived
    int64_t due
    int fd
    uint32_t head_size
    uint32_t size
    uint8_t head[64]
    uint8_t body[1024]


# What the workers put off; guarded by the lock.
cdef struct Spread:
    pthread_mutex_t lock
    pthread_cond_t wake
    Later *first
    Later **last
    int64_t last_due
    uint64_t taken
    uint64_t done
    int stop


cdef Spread *new_spread() except NULL
cdef void free_spread(Spread *spread) noexcept nogil
cdef void stop_spread(Spread *spread) noexcept nogil
cdef bint put_off(Spread *spread, const Reply *reply, int64_t now, int fd) noexcept nogil
cdef void spread_loop(Spread *spread, Batch *batch, Outbox *outbox) noexcept nogil
