"""What side threads share: a line of things to do, and answers that leave later."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .batch cimport Batch, Reply
from .clients cimport Client
from .store cimport pthread_mutex_t
from .view cimport Row


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass


# The first member of whatever stands in a line.
cdef struct Link:
    Link *next


# First in, first out. The lock guards it, and what its owner keeps beside it.
cdef struct Line:
    pthread_mutex_t lock
    pthread_cond_t wake
    Link *first
    Link **last
    uint64_t taken              # handed over so far; workers look at both without the lock: a hint
    uint64_t done               # answered so far
    int stop


# An answer that leaves later than its batch.
cdef struct Late:
    Link link
    Row *row
    Client *client
    int64_t arrived
    int fd
    uint32_t head_size
    uint8_t head[64]


cdef void open_line(Line *line) noexcept nogil
cdef void close_line(Line *line) noexcept nogil
cdef void stop_line(Line *line) noexcept nogil
cdef void line_wake(Line *line, uint32_t many) noexcept nogil
cdef void line_put(Line *line, Link *link) noexcept nogil
cdef Link *line_take(Line *line) noexcept nogil
cdef Link *line_wait(Line *line) noexcept nogil
cdef void line_nap(Line *line, int64_t ns) noexcept nogil
cdef void keep_late(Late *late, const Reply *reply, int fd) noexcept nogil
cdef Reply *put_late(Batch *batch, const Late *late) noexcept nogil
