"""What side threads share: a line of things to do, and answers that leave later.

Workers put things in and go on; threads take them out, or sleep. What its owner keeps beside the
line (groups, lanes, the time of the next) is guarded by the same lock.
"""

from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from .batch cimport HEAD_BYTES
from .store cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef extern from "<pthread.h>" nogil:
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_timedwait(
        pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until
    )


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME


cdef void open_line(Line *line) noexcept nogil:
    """Make zeroes a line."""
    pthread_mutex_init(&line.lock, NULL)
    pthread_cond_init(&line.wake, NULL)
    line.last = &line.first


cdef void close_line(Line *line) noexcept nogil:
    """Give up what ``open_line`` made; nobody is at it any more."""
    pthread_cond_destroy(&line.wake)
    pthread_mutex_destroy(&line.lock)


cdef void stop_line(Line *line) noexcept nogil:
    """Have every thread at it finish what is there and return."""
    pthread_mutex_lock(&line.lock)
    line.stop = 1
    pthread_cond_broadcast(&line.wake)
    pthread_mutex_unlock(&line.lock)


cdef void line_wake(Line *line, uint32_t many) noexcept nogil:
    """Wake so many of those that sleep. To be called without the lock.

    On the caller's own CPU a thread that wakes up runs at once, and would wait for the lock.
    """
    while many:
        pthread_cond_signal(&line.wake)
        many -= 1


# With the lock held:


cdef void line_put(Line *line, Link *link) noexcept nogil:
    """Append; whoever does must wake a thread afterwards, or look at the line itself."""
    link.next = NULL
    line.last[0] = link
    line.last = &link.next


cdef Link *line_take(Line *line) noexcept nogil:
    """The first, taken out, or NULL."""
    cdef Link *link = line.first
    if link != NULL:
        line.first = link.next
        if line.first == NULL:
            line.last = &line.first
    return link


cdef Link *line_wait(Line *line) noexcept nogil:
    """The first, taken out, as soon as there is one; NULL: stopped, and empty."""
    while line.first == NULL and not line.stop:
        pthread_cond_wait(&line.wake, &line.lock)
    return line_take(line)


cdef void line_nap(Line *line, int64_t ns) noexcept nogil:
    """Until something is put in, or so long."""
    cdef timespec until
    clock_gettime(CLOCK_REALTIME, &until)
    ns += until.tv_nsec
    until.tv_sec += ns // 1000000000
    until.tv_nsec = ns % 1000000000
    pthread_cond_timedwait(&line.wake, &line.lock, &until)


# Answers that leave later


cdef void keep_late(Late *late, const Reply *reply, int fd) noexcept nogil:
    """Keep what an answer by ``fd`` is made of, but for its data."""
    late.row = reply.row
    late.client = reply.client
    late.arrived = reply.arrived
    late.fd = fd
    late.head_size = reply.head_size
    memcpy(late.head, reply.head, HEAD_BYTES)


cdef Reply *put_late(Batch *batch, const Late *late) noexcept nogil:
    """The next reply of the batch, made of what was kept; it has no data yet."""
    cdef Reply *reply = &batch.replies[batch.count]
    memset(reply, 0, sizeof(Reply))
    memcpy(reply.head, late.head, HEAD_BYTES)
    reply.head_size = late.head_size
    reply.row = late.row
    reply.client = late.client
    reply.arrived = late.arrived
    batch.count += 1
    return reply
