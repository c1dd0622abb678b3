"""Side threads that bring in what is not in memory, and answer for it.

A worker that touched a cold page would wait for the disk with every other client behind it. It
hands such a read over instead and goes on.
"""

from libc.string cimport memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport usleep

from .batch cimport HEAD_BYTES, fail_ata
from .memory cimport give, take
from .observe cimport note_sent
from .residency cimport CHUNK_BYTES, CHUNK_SECTORS_LOG2, look_at
from .ring cimport outbox_add, outbox_send
from .store cimport (
    backing_hold, backing_read, backing_release, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from .wire cimport ATA_UNC


cdef extern from "<pthread.h>" nogil:
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_broadcast(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)


cdef extern from "<fcntl.h>" nogil:
    ssize_t readahead(int fd, off_t offset, size_t count)


cdef enum:
    # Beyond this a worker reads for itself: clients repeat what waits, and the list must end.
    MOST_WAITING = 1 << 16
    SCRATCH_BYTES = 256 * 512


# For tests: every fetch waits so long first, like a slow disk.
cdef uint32_t delay_us = 0


def set_delay(uint32_t microseconds):
    """Make every fetch of this process wait first, as a slow disk would; for tests."""
    global delay_us
    delay_us = microseconds


cdef Fetches *new_fetches() except NULL:
    cdef Fetches *fetches = <Fetches *>take(sizeof(Fetches))
    if fetches == NULL:
        raise MemoryError()
    pthread_mutex_init(&fetches.lock, NULL)
    pthread_cond_init(&fetches.wake, NULL)
    fetches.last = &fetches.first
    return fetches


cdef void free_fetches(Fetches *fetches) noexcept nogil:
    if fetches != NULL:
        pthread_cond_destroy(&fetches.wake)
        pthread_mutex_destroy(&fetches.lock)
        give(fetches)


cdef void stop_fetches(Fetches *fetches) noexcept nogil:
    """Have every fetch_loop answer what is waiting and return."""
    pthread_mutex_lock(&fetches.lock)
    fetches.stop = 1
    pthread_cond_broadcast(&fetches.wake)
    pthread_mutex_unlock(&fetches.lock)


cdef bint hand_over(Fetches *fetches, const Reply *reply, int fd) noexcept nogil:
    """Have a fetch thread answer; False if the worker must do it itself."""
    cdef Fetch *node
    if reply.size > SCRATCH_BYTES or fetches.taken - fetches.done > MOST_WAITING:
        return False
    node = <Fetch *>take(sizeof(Fetch))
    if node == NULL:
        return False
    backing_hold(reply.image)
    node.next = NULL
    node.backing = reply.image
    node.row = reply.row
    node.client = reply.client
    node.arrived = reply.arrived
    node.sector = reply.sector
    node.size = reply.size
    node.head_size = reply.head_size
    node.fd = fd
    memcpy(node.head, reply.head, HEAD_BYTES)
    pthread_mutex_lock(&fetches.lock)
    fetches.last[0] = node
    fetches.last = &node.next
    fetches.taken += 1
    pthread_cond_signal(&fetches.wake)
    pthread_mutex_unlock(&fetches.lock)
    return True


cdef void fetch_loop(Fetches *fetches, Batch *batch, Outbox *outbox) noexcept nogil:
    """Read and answer until told to stop, then what is left. ``batch`` is this thread's own."""
    cdef uint8_t scratch[SCRATCH_BYTES]
    cdef Fetch *node
    while True:
        pthread_mutex_lock(&fetches.lock)
        while fetches.first == NULL and not fetches.stop:
            pthread_cond_wait(&fetches.wake, &fetches.lock)
        node = fetches.first
        if node != NULL:
            fetches.first = node.next
            if fetches.first == NULL:
                fetches.last = &fetches.first
        pthread_mutex_unlock(&fetches.lock)
        if node == NULL:
            return
        serve(node, batch, outbox, scratch)
        backing_release(node.backing)
        give(node)
        pthread_mutex_lock(&fetches.lock)
        fetches.done += 1
        pthread_mutex_unlock(&fetches.lock)


cdef void serve(Fetch *node, Batch *batch, Outbox *outbox, uint8_t *scratch) noexcept nogil:
    """Answer one read; then have its 64 KiB brought in, so that the next ones are warm."""
    cdef Reply *reply = &batch.replies[0]
    cdef uint64_t chunk = node.sector >> CHUNK_SECTORS_LOG2
    # One transfer for the chunk: whoever reads on in it finds it there.
    readahead(
        node.backing.fd, <off_t>(node.backing.offset + chunk * CHUNK_BYTES), CHUNK_BYTES
    )
    if delay_us:
        usleep(delay_us)
    memset(reply, 0, sizeof(Reply))
    memcpy(reply.head, node.head, HEAD_BYTES)
    reply.head_size = node.head_size
    reply.data = scratch
    reply.size = node.size
    reply.row = node.row
    reply.client = node.client
    reply.arrived = node.arrived
    batch.count = 1
    if backing_read(node.backing, node.sector, scratch, node.size) != 0:
        fail_ata(reply, ATA_UNC)
        batch.counters.ata_errors += 1
        node.row.errors += 1
        node.row.errors_unc += 1
        if node.client != NULL:
            node.client.errors_unc += 1
    batch.counters.cold += 1
    outbox_add(outbox, batch, 0)
    outbox_send(outbox, batch, node.fd)
    note_sent(batch)
    look_at(node.backing, chunk, 1)
