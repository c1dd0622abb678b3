"""The sync thread: durable acknowledgements by group commit, writeback every few seconds.

It takes every acknowledgement that waits, syncs each export once, and sends them; while one sync
runs the next group gathers. So durable writes cost the disk one sync for many.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from .batch cimport BATCH_REPLIES, Counters, Reply, fail_ata, monotonic
from .memory cimport give, take
from .observe cimport note_sent
from .ring cimport outbox_add, outbox_send
from .store cimport (
    backing_hold, backing_release, backing_sync, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from .wire cimport ATA_UNC, SHORTEST_REPLY


cdef extern from "atomics.h" nogil:
    void aoe_release32(uint32_t *p, uint32_t value)
    uint32_t aoe_swap32(uint32_t *p, uint32_t value)
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


cdef extern from "<pthread.h>" nogil:
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_timedwait(
        pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *until
    )


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME


cdef enum:
    # A writeback export is synced this often.
    WRITEBACK_SECONDS = 5


# Rounds are numbered in the whole process: two servers may share an export.
cdef uint64_t rounds = 0


cdef void free_queue(Queue *queue) noexcept nogil:
    if queue != NULL:
        pthread_cond_destroy(&queue.wake)
        pthread_mutex_destroy(&queue.lock)
        give(queue)


cdef Queue *new_queue() except NULL:
    cdef Queue *queue = <Queue *>take(sizeof(Queue))
    if queue == NULL:
        raise MemoryError()
    pthread_mutex_init(&queue.lock, NULL)
    pthread_cond_init(&queue.wake, NULL)
    queue.last = &queue.first
    return queue


cdef void stop_queue(Queue *queue) noexcept nogil:
    """Have sync_loop finish what is queued and return."""
    pthread_mutex_lock(&queue.lock)
    queue.stop = 1
    pthread_cond_signal(&queue.wake)
    pthread_mutex_unlock(&queue.lock)


cdef void mark_dirty(Queue *queue, Backing *backing) noexcept nogil:
    """Have a writeback export synced within WRITEBACK_SECONDS."""
    cdef Dirty *node
    if aoe_swap32(&backing.dirty, 1):
        return
    node = <Dirty *>take(sizeof(Dirty))
    if node == NULL:
        backing.dirty = 0  # the next write tries again; the kernel writes back anyway
        return
    backing_hold(backing)
    node.backing = backing
    pthread_mutex_lock(&queue.lock)
    node.next = queue.dirty
    queue.dirty = node
    pthread_mutex_unlock(&queue.lock)


cdef void defer(Queue *queue, Batch *batch, Outbox *outbox, int fd) noexcept nogil:
    """Hand the batch's replies that need a sync to the sync thread, in their order."""
    cdef Waiting *first = NULL
    cdef Waiting **last = &first
    cdef Waiting *node
    cdef Reply *reply
    cdef uint64_t many = 0
    cdef uint32_t i
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.sync == NULL:
            continue
        node = <Waiting *>take(sizeof(Waiting))
        if node == NULL:
            # No promise without a sync: this one write fails.
            fail_ata(reply, ATA_UNC)
            outbox_add(outbox, batch, i)
            continue
        backing_hold(reply.sync)
        node.next = NULL
        node.backing = reply.sync
        node.row = reply.row
        node.client = reply.client
        node.arrived = reply.arrived
        node.fd = fd
        memcpy(node.head, reply.head, SHORTEST_REPLY)
        reply.client = NULL  # its time is taken when it leaves
        last[0] = node
        last = &node.next
        many += 1
    if first == NULL:
        return
    pthread_mutex_lock(&queue.lock)
    queue.last[0] = first
    queue.last = last
    queue.taken += many
    pthread_cond_signal(&queue.wake)
    pthread_mutex_unlock(&queue.lock)


cdef void sync_loop(Queue *queue, Batch *batch, Outbox *outbox) noexcept nogil:
    """Sync and acknowledge until told to stop, then what is left."""
    cdef int64_t next_writeback = monotonic() + <int64_t>WRITEBACK_SECONDS * 1000000000
    cdef uint64_t round = 0
    cdef uint64_t taken
    cdef timespec until
    cdef Waiting *waiting
    cdef Dirty *dirty
    cdef int stop = 0
    while not stop:
        pthread_mutex_lock(&queue.lock)
        if queue.first == NULL and not queue.stop:
            clock_gettime(CLOCK_REALTIME, &until)
            until.tv_sec += 1
            pthread_cond_timedwait(&queue.wake, &queue.lock, &until)
        stop = queue.stop
        waiting = queue.first
        queue.first = NULL
        queue.last = &queue.first
        dirty = NULL
        if stop or monotonic() >= next_writeback:
            dirty = queue.dirty
            queue.dirty = NULL
            next_writeback = monotonic() + <int64_t>WRITEBACK_SECONDS * 1000000000
        pthread_mutex_unlock(&queue.lock)
        if waiting != NULL:
            round = aoe_add64(&rounds, 1)
            taken = commit(waiting, round, batch, outbox)
            pthread_mutex_lock(&queue.lock)
            queue.done += taken
            pthread_mutex_unlock(&queue.lock)
        write_back(dirty, batch.counters)


cdef uint64_t commit(
    Waiting *waiting, uint64_t round, Batch *batch, Outbox *outbox
) noexcept nogil:
    """One sync for each export, then every acknowledgement; frees the list. How many."""
    cdef Waiting *node = waiting
    cdef Waiting *next
    cdef Reply *reply
    cdef uint64_t many = 0
    while node != NULL:
        if node.backing.sync_round != round:
            node.backing.sync_round = round
            node.backing.sync_error = backing_sync(node.backing)
            batch.counters.syncs += 1
        node = node.next
    while waiting != NULL:
        # As many as share a socket and fit go out together.
        batch.count = 0
        node = waiting
        while node != NULL and node.fd == waiting.fd and batch.count < BATCH_REPLIES:
            reply = &batch.replies[batch.count]
            memset(reply, 0, sizeof(Reply))
            memcpy(reply.head, node.head, SHORTEST_REPLY)
            reply.head_size = SHORTEST_REPLY
            reply.row = node.row
            reply.client = node.client
            reply.arrived = node.arrived
            if node.backing.sync_error:
                fail_ata(reply, ATA_UNC)
                batch.counters.ata_errors += 1
                node.row.errors += 1
                node.row.errors_unc += 1
                if node.client != NULL:
                    node.client.errors_unc += 1
            outbox_add(outbox, batch, batch.count)
            batch.count += 1
            node = node.next
        outbox_send(outbox, batch, waiting.fd)
        note_sent(batch)
        while waiting != node:
            next = waiting.next
            backing_release(waiting.backing)
            give(waiting)
            waiting = next
            many += 1
    return many


cdef void write_back(Dirty *dirty, Counters *counters) noexcept nogil:
    """Sync every export of the list; frees it. An error cannot reach the client any more."""
    cdef Dirty *next
    while dirty != NULL:
        next = dirty.next
        # Before the sync: a write during it puts the export on the list again.
        aoe_release32(&dirty.backing.dirty, 0)
        if backing_sync(dirty.backing) != 0:
            counters.ata_errors += 1
        counters.syncs += 1
        backing_release(dirty.backing)
        give(dirty)
        dirty = next
