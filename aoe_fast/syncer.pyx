"""The sync threads: durable acknowledgements by group commit, writeback every few seconds.

A thread takes all the acknowledgements that wait for one export, syncs it once, and sends them;
while one sync runs the next group gathers. So durable writes cost the disk one sync for many.
Several exports are synced at once: the kernel makes one flush of the disk's cache out of many.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from .batch cimport BATCH_REPLIES, Counters, Reply, fail_ata, fail_medium, monotonic
from .line cimport (
    close_line, keep_late, line_nap, line_put, line_take, line_wake, open_line,
    put_late, stop_line,
)
from .memory cimport give, take
from .observe cimport note_sent
from .outbox cimport outbox_add, outbox_send
from .store cimport (
    aoe_count32, backing_hear, backing_hold, backing_release, backing_sync, backing_sync_by,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from .wire cimport ATA_UNC


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)
    uint32_t aoe_swap32(uint32_t *p, uint32_t value)
    uint64_t aoe_add64(uint64_t *p, uint64_t n)


cdef enum:
    # A writeback export is synced this often.
    WRITEBACK_SECONDS = 5
    # Both descriptors of an export.
    ALL_BUSY = 3


cdef void free_queue(Queue *queue) noexcept nogil:
    if queue != NULL:
        close_line(&queue.line)
        give(queue)


cdef Queue *new_queue() except NULL:
    cdef Queue *queue = <Queue *>take(sizeof(Queue))
    if queue == NULL:
        raise MemoryError()
    open_line(&queue.line)
    return queue


cdef void stop_queue(Queue *queue) noexcept nogil:
    """Have every sync_loop finish what is queued and return."""
    stop_line(&queue.line)


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
    pthread_mutex_lock(&queue.line.lock)
    node.next = queue.dirty
    queue.dirty = node
    pthread_mutex_unlock(&queue.line.lock)


cdef Group *find_group(Queue *queue, Backing *backing) noexcept nogil:
    """The group of an export, a new one if it has none; NULL if there is no memory."""
    cdef Group **bucket = &queue.buckets[(<uintptr_t>backing >> 8) % BUCKETS]
    cdef Group *group = bucket[0]
    while group != NULL:
        if group.backing == backing:
            return group
        group = group.chain
    group = <Group *>take(sizeof(Group))
    if group != NULL:
        backing_hold(backing)
        group.backing = backing
        group.last = &group.first
        group.chain = bucket[0]
        bucket[0] = group
    return group


cdef void drop_group(Queue *queue, Group *group) noexcept nogil:
    """Forget a group that nothing waits for."""
    cdef Group **at = &queue.buckets[(<uintptr_t>group.backing >> 8) % BUCKETS]
    while at[0] != group:
        at = &at[0].chain
    at[0] = group.chain
    backing_release(group.backing)
    give(group)


cdef bint line_up(Queue *queue, Group *group) noexcept nogil:
    """Put the group in line for a thread; False: one will take it, or both syncs are at work."""
    if group.in_line or group.running == ALL_BUSY or group.first == NULL:
        return False
    if group.running and group.backing.sync_fd < 0:
        # One description: a second sync could miss the error that the first is told of.
        return False
    group.in_line = True
    line_put(&queue.line, &group.link)
    return True


cdef void defer(Queue *queue, Batch *batch, Outbox *outbox, int fd) noexcept nogil:
    """Hand the batch's replies that need a sync to the sync threads, in their order."""
    cdef Waiting *node
    cdef Group *group
    cdef Reply *reply
    cdef uint32_t wake = 0
    cdef uint32_t i
    pthread_mutex_lock(&queue.line.lock)
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.sync == NULL:
            continue
        node = <Waiting *>take(sizeof(Waiting))
        group = find_group(queue, reply.sync) if node != NULL else NULL
        if group == NULL:
            # No promise without a sync: this one write fails.
            give(node)
            fail_ata(reply, ATA_UNC)
            outbox_add(outbox, batch, i)
            continue
        keep_late(&node.late, reply, fd)
        node.next = NULL
        node.failures = reply.failures
        reply.client = NULL  # its time is taken when it leaves
        group.last[0] = node
        group.last = &node.next
        queue.line.taken += 1
        wake += line_up(queue, group)
    pthread_mutex_unlock(&queue.line.lock)
    line_wake(&queue.line, wake)


cdef void sync_loop(
    Queue *queue, Batch *batch, Outbox *outbox, Counters *counters, bint leads
) noexcept nogil:
    """Sync and acknowledge until told to stop, then what is left.

    ``counters`` is shared by the threads, under the lock. One of them leads: it also writes back.
    """
    cdef int64_t next_writeback = monotonic() + <int64_t>WRITEBACK_SECONDS * 1000000000
    cdef uint64_t many
    cdef Waiting *waiting
    cdef Group *group
    cdef Dirty *dirty
    cdef Counters own
    cdef uint32_t number
    cdef int code
    memset(&own, 0, sizeof(Counters))
    batch.counters = &own
    pthread_mutex_lock(&queue.line.lock)
    while True:
        dirty = NULL
        if leads and (queue.line.stop or monotonic() >= next_writeback):
            dirty = queue.dirty
            queue.dirty = NULL
            next_writeback = monotonic() + <int64_t>WRITEBACK_SECONDS * 1000000000
        if dirty != NULL:
            pthread_mutex_unlock(&queue.line.lock)
            # It takes a while: what is in line is another thread's.
            line_wake(&queue.line, 1)
            write_back(dirty, &own)
            pthread_mutex_lock(&queue.line.lock)
        elif queue.line.first != NULL:
            group = <Group *>line_take(&queue.line)
            group.in_line = False
            if group.running == ALL_BUSY:
                # Since it was put there tell_both has begun, and puts it in again.
                continue
            number = 1 if group.running & 1 else 0
            group.running |= <uint32_t>1 << number
            waiting = group.first
            group.first = NULL
            group.last = &group.first
            pthread_mutex_unlock(&queue.line.lock)
            many = 0
            code = backing_sync_by(group.backing, number)
            if code:
                tell_both(queue, group, number)
            # Seen at the latest when the acknowledgement is.
            aoe_add64(&counters.syncs, 1)
            commit(group, code, waiting, batch, outbox, &many)
            pthread_mutex_lock(&queue.line.lock)
            queue.line.done += many
            while group.owed >> number & 1:
                group.owed &= ~(<uint32_t>1 << number)
                pthread_mutex_unlock(&queue.line.lock)
                hear(group, number)
                pthread_mutex_lock(&queue.line.lock)
            group.running &= ~(<uint32_t>1 << number)
            line_up(queue, group)  # this thread looks at the line next
            if group.first == NULL and not group.running:
                drop_group(queue, group)
        elif queue.line.stop:
            break
        else:
            line_nap(&queue.line, <int64_t>(1 if leads else 60) * 1000000000)
            continue
        counters.replies += own.replies
        counters.ata_errors += own.ata_errors
        counters.send_errors += own.send_errors
        aoe_add64(&counters.syncs, own.syncs)
        memset(&own, 0, sizeof(Counters))
    pthread_mutex_unlock(&queue.line.lock)


cdef void tell_both(Queue *queue, Group *group, uint32_t number) noexcept nogil:
    """A sync by descriptor ``number`` failed: whatever was written before that fails.

    fdatasync tells an error once to each descriptor. So the other one is told now, or it would tell
    it some time later, to writes that have nothing to do with it. Where that one is at work, its
    thread does so when it is done: its sync may have looked for errors just before.
    """
    cdef Backing *backing = group.backing
    cdef uint32_t bit = <uint32_t>1 << (1 - number)
    cdef uint32_t wake
    cdef bint idle
    aoe_count32(&backing.failures, 1)
    if backing.sync_fd < 0:
        return
    pthread_mutex_lock(&queue.line.lock)
    idle = not group.running & bit
    if idle:
        group.running |= bit
    else:
        group.owed |= bit
    pthread_mutex_unlock(&queue.line.lock)
    if not idle:
        return
    hear(group, 1 - number)
    pthread_mutex_lock(&queue.line.lock)
    group.running &= ~bit
    wake = line_up(queue, group)
    pthread_mutex_unlock(&queue.line.lock)
    line_wake(&queue.line, wake)


cdef void hear(Group *group, uint32_t number) noexcept nogil:
    """Have this descriptor told; if it meets something, which may be new, what waits fails as well.

    If not, whoever has asked since the failure was acknowledged is left alone.
    """
    if backing_hear(group.backing, number):
        aoe_count32(&group.backing.failures, 1)


cdef void commit(
    Group *group, int code, Waiting *waiting, Batch *batch, Outbox *outbox, uint64_t *many
) noexcept nogil:
    """Send every acknowledgement, counted in ``many``; frees the list. ``code``: their sync's."""
    cdef uint32_t failures = aoe_acquire32(&group.backing.failures)
    cdef Waiting *node = waiting
    cdef Waiting *next
    cdef Reply *reply
    while waiting != NULL:
        # As many as share a socket and fit go out together.
        batch.count = 0
        node = waiting
        while node != NULL and node.late.fd == waiting.late.fd and batch.count < BATCH_REPLIES:
            reply = put_late(batch, &node.late)
            if code or node.failures != failures:
                fail_medium(batch, reply)
            outbox_add(outbox, batch, batch.count - 1)
            node = node.next
        outbox_send(outbox, batch, waiting.late.fd)
        note_sent(batch)
        while waiting != node:
            next = waiting.next
            give(waiting)
            waiting = next
            many[0] += 1


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
