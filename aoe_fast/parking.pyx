"""Side threads for writes that must wait for a disk.

A write of a part of a page that is not in memory makes the kernel read that page first. A worker
would wait for it with all its clients; so it parks the write here and goes on. All later writes of
the same export line up behind it, so each client's are applied in their order of arrival.
"""

from libc.string cimport memcpy
from posix.types cimport off_t
from posix.unistd cimport usleep

from .batch cimport fail_medium
from .line cimport (
    close_line, keep_late, line_put, line_wait, line_wake, open_line, put_late, stop_line,
)
from .memory cimport give, take
from .observe cimport note_sent
from .outbox cimport outbox_add, outbox_send
from .residency cimport CHUNK_BYTES, CHUNK_SECTORS_LOG2, look_at
from .store cimport (
    aoe_count32, backing_hold, backing_release, backing_write, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from .syncer cimport defer, mark_dirty


cdef extern from "<fcntl.h>" nogil:
    ssize_t readahead(int fd, off_t offset, size_t count)


cdef enum:
    # Beyond this a write is dropped, as a full ring would drop it: its client sends it again.
    MOST_BYTES = 64 << 20


# For tests: every parked write waits so long first, like a slow disk.
cdef uint32_t delay_us = 0


def set_delay(uint32_t microseconds):
    """Make every parked write of this process wait first, as a slow disk would; for tests.

    Those that wait already end with the new delay.
    """
    global delay_us
    delay_us = microseconds


cdef void dawdle() noexcept nogil:
    cdef uint32_t waited = 0
    while waited < delay_us:
        usleep(1000)
        waited += 1000


cdef Parking *new_parking() except NULL:
    cdef Parking *parking = <Parking *>take(sizeof(Parking))
    if parking == NULL:
        raise MemoryError()
    open_line(&parking.line)
    return parking


cdef void free_parking(Parking *parking) noexcept nogil:
    if parking != NULL:
        close_line(&parking.line)
        give(parking)


cdef void stop_parking(Parking *parking) noexcept nogil:
    """Have every parking_loop write what is waiting and return."""
    stop_line(&parking.line)


cdef Lane *find_lane(Parking *parking, Backing *backing) noexcept nogil:
    """The lane of an export, a new one if it has none; NULL if there is no memory."""
    cdef Lane **bucket = &parking.buckets[(<size_t>backing >> 8) % LANES]
    cdef Lane *lane = bucket[0]
    while lane != NULL:
        if lane.backing == backing:
            return lane
        lane = lane.chain
    lane = <Lane *>take(sizeof(Lane))
    if lane != NULL:
        backing_hold(backing)
        lane.backing = backing
        lane.last = &lane.first
        lane.chain = bucket[0]
        bucket[0] = lane
    return lane


cdef void drop_lane(Parking *parking, Lane *lane) noexcept nogil:
    """Forget a lane in which nothing waits."""
    cdef Lane **at = &parking.buckets[(<size_t>lane.backing >> 8) % LANES]
    while at[0] != lane:
        at = &at[0].chain
    at[0] = lane.chain
    backing_release(lane.backing)
    give(lane)


cdef bint line_up(Parking *parking, Lane *lane) noexcept nogil:
    """Put the lane in line for a thread; False: one will take it or is at it already."""
    if lane.in_line or lane.running or lane.first == NULL:
        return False
    lane.in_line = True
    line_put(&parking.line, &lane.link)
    return True


cdef bint park(
    Parking *parking, const Reply *reply, const uint8_t *payload, int fd
) noexcept nogil:
    """Have the write behind ``reply`` done and answered later; False if it must be dropped.

    To be called before the next frame is handled, so that the next write sees that one waits.
    """
    cdef Parked *node = <Parked *>take(sizeof(Parked) + reply.late)
    cdef Lane *lane = NULL
    cdef uint32_t wake = 0
    if node == NULL:
        return False
    keep_late(&node.late, reply, fd)
    node.next = NULL
    node.sector = reply.sector
    node.size = reply.late
    memcpy(<uint8_t *>node + sizeof(Parked), payload, reply.late)
    pthread_mutex_lock(&parking.line.lock)
    if parking.bytes <= MOST_BYTES:
        lane = find_lane(parking, reply.image)
    if lane != NULL:
        lane.last[0] = node
        lane.last = &node.next
        parking.bytes += node.size
        parking.line.taken += 1
        aoe_count32(&reply.image.parked, 1)
        wake = line_up(parking, lane)
    pthread_mutex_unlock(&parking.line.lock)
    line_wake(&parking.line, wake)
    if lane == NULL:
        give(node)
        return False
    return True


cdef void parking_loop(
    Parking *parking, Queue *queue, Batch *batch, Outbox *outbox
) noexcept nogil:
    """Write and answer until told to stop, then what is left. ``batch`` is this thread's own."""
    cdef Parked *node
    cdef Lane *lane
    pthread_mutex_lock(&parking.line.lock)
    while True:
        lane = <Lane *>line_wait(&parking.line)
        if lane == NULL:
            break
        lane.in_line = False
        lane.running = True
        while lane.first != NULL:
            node = lane.first
            lane.first = node.next
            if lane.first == NULL:
                lane.last = &lane.first
            pthread_mutex_unlock(&parking.line.lock)
            apply(node, lane.backing, queue, batch, outbox)
            pthread_mutex_lock(&parking.line.lock)
            parking.bytes -= node.size
            parking.line.done += 1
            give(node)
        lane.running = False
        drop_lane(parking, lane)
    pthread_mutex_unlock(&parking.line.lock)


cdef void apply(
    Parked *node, Backing *backing, Queue *queue, Batch *batch, Outbox *outbox
) noexcept nogil:
    """Write, then answer or have it synced first; then bring the 64 KiB in for the next ones."""
    cdef Reply *reply
    cdef uint64_t chunk = node.sector >> CHUNK_SECTORS_LOG2
    cdef uint32_t failures = aoe_acquire32(&backing.failures)
    cdef int code
    if delay_us:
        dawdle()
    code = backing_write(
        backing, node.sector, <const uint8_t *>node + sizeof(Parked), node.size
    )
    readahead(backing.fd, <off_t>(backing.offset + chunk * CHUNK_BYTES), CHUNK_BYTES)
    look_at(backing, chunk, 1)
    # Applied: from here on a worker may write for itself again.
    aoe_count32(&backing.parked, -1)
    batch.count = 0
    reply = put_late(batch, &node.late)
    batch.counters.parked += 1
    if code:
        fail_medium(batch, reply)
    elif backing.durable:
        reply.sync = backing
        reply.failures = failures
        defer(queue, batch, outbox, node.late.fd)
    else:
        mark_dirty(queue, backing)
    if code or not backing.durable:
        outbox_add(outbox, batch, 0)
    if outbox.count:
        outbox_send(outbox, batch, node.late.fd)
        note_sent(batch)
