"""Side threads that bring in what is not in memory, and answer for it.

A worker that touched a cold page would wait for the disk with every other client behind it. It
hands such a read over instead and goes on.
"""

from posix.types cimport off_t
from posix.unistd cimport usleep

from .batch cimport fail_medium
from .line cimport (
    close_line, keep_late, line_put, line_wait, line_wake, open_line, put_late, stop_line,
)
from .memory cimport give, take
from .observe cimport note_sent
from .outbox cimport outbox_add, outbox_send
from .residency cimport CHUNK_BYTES, CHUNK_SECTORS_LOG2, is_resident, look_at
from .store cimport (
    backing_hold, backing_read, backing_release, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef extern from "<fcntl.h>" nogil:
    ssize_t readahead(int fd, off_t offset, size_t count)


cdef enum:
    # Beyond this a worker reads for itself: clients repeat what waits, and the list must end.
    MOST_WAITING = 1 << 16
    SCRATCH_BYTES = 256 * 512


# For tests: every fetch waits so long first, like a slow disk.
cdef uint32_t delay_us = 0


def set_delay(uint32_t microseconds):
    """Make every fetch of this process wait first, as a slow disk would; for tests.

    Those that wait already end with the new delay.
    """
    global delay_us
    delay_us = microseconds


cdef void dawdle() noexcept nogil:
    cdef uint32_t waited = 0
    while waited < delay_us:
        usleep(1000)
        waited += 1000


cdef Fetches *new_fetches() except NULL:
    cdef Fetches *fetches = <Fetches *>take(sizeof(Fetches))
    if fetches == NULL:
        raise MemoryError()
    open_line(&fetches.line)
    return fetches


cdef void free_fetches(Fetches *fetches) noexcept nogil:
    if fetches != NULL:
        close_line(&fetches.line)
        give(fetches)


cdef void stop_fetches(Fetches *fetches) noexcept nogil:
    """Have every fetch_loop answer what is waiting and return."""
    stop_line(&fetches.line)


cdef bint hand_over(Fetches *fetches, const Reply *reply, int fd) noexcept nogil:
    """Have a fetch thread answer; False if the worker must do it itself."""
    cdef Line *line = &fetches.line
    cdef Fetch *node
    if reply.size > SCRATCH_BYTES or line.taken - line.done > MOST_WAITING:
        return False
    node = <Fetch *>take(sizeof(Fetch))
    if node == NULL:
        return False
    backing_hold(reply.image)
    keep_late(&node.late, reply, fd)
    node.backing = reply.image
    node.sector = reply.sector
    node.size = reply.size
    pthread_mutex_lock(&line.lock)
    line_put(line, &node.late.link)
    line.taken += 1
    pthread_mutex_unlock(&line.lock)
    line_wake(line, 1)
    return True


cdef void fetch_loop(Fetches *fetches, Batch *batch, Outbox *outbox) noexcept nogil:
    """Read and answer until told to stop, then what is left. ``batch`` is this thread's own."""
    cdef Line *line = &fetches.line
    cdef uint8_t scratch[SCRATCH_BYTES]
    cdef Fetch *node
    pthread_mutex_lock(&line.lock)
    while True:
        node = <Fetch *>line_wait(line)
        if node == NULL:
            break
        pthread_mutex_unlock(&line.lock)
        serve(node, batch, outbox, scratch)
        backing_release(node.backing)
        give(node)
        pthread_mutex_lock(&line.lock)
        line.done += 1
    pthread_mutex_unlock(&line.lock)


cdef void serve(Fetch *node, Batch *batch, Outbox *outbox, uint8_t *scratch) noexcept nogil:
    """Answer one read, and have its 64 KiB brought in, so that the next ones are warm.

    What is there is looked for first, not afterwards: while the disk is at work others are served,
    and every microsecond that this thread takes once it wakes up delays all that wait by then. So
    the second read of a chunk comes here, too, and finds it.
    """
    cdef Reply *reply
    cdef uint64_t chunk = node.sector >> CHUNK_SECTORS_LOG2
    look_at(node.backing, chunk, 1)
    if not is_resident(node.backing, node.sector, node.size):
        # One transfer for the chunk: whoever reads on in it finds it there.
        readahead(
            node.backing.fd, <off_t>(node.backing.offset + chunk * CHUNK_BYTES), CHUNK_BYTES
        )
    if delay_us:
        dawdle()
    batch.count = 0
    reply = put_late(batch, &node.late)
    reply.data = scratch
    reply.size = node.size
    if backing_read(node.backing, node.sector, scratch, node.size) != 0:
        fail_medium(batch, reply)
    batch.counters.cold += 1
    outbox_add(outbox, batch, 0)
    outbox_send(outbox, batch, node.late.fd)
    note_sent(batch)
