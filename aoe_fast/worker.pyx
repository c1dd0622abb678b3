"""One worker thread, without the GIL: harvest, handle, send.

It takes what has arrived on its pair of rings, up to a batch, answers it with one sendmmsg, and
spins for a moment before it sleeps: waking up is most of what a client with one request
outstanding waits for. What must wait for a disk or a clock goes to the side threads.
"""

from .backlog cimport BACKLOG_SHARE, Postponed, next_postponed, postpone
from .batch cimport BATCH_FRAMES, Reply, monotonic
from .fetch cimport hand_over
from .guard cimport let_faults_through
from .observe cimport is_greedy, note_frame, note_sent
from .outbox cimport outbox_add, outbox_send, prefetch_data
from .parking cimport park
from .pauses cimport pause_for_more, pause_is_worth, pauses_batch, pauses_idle
from .residency cimport is_resident
from .ring cimport (
    PAYLOADS, REQUESTS, ring_arrival, ring_drops, ring_peek, ring_pop, socket_error,
)
from .spread cimport put_off
from .syncer cimport defer, mark_dirty
from .target cimport handle
from .view cimport enter, leave
from .wire cimport AtaHeader


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_relax()


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum:
        POLLIN
        POLLERR


cdef enum:
    # An idle worker looks at the drop counter this often.
    IDLE_MS = 1000
    # A busy one after so many batches.
    DROPS_EVERY = 4096
    SPIN_PAUSES = 2


cdef void worker_loop(Worker *worker) noexcept nogil:
    """Serve until told to stop, then what has arrived by then."""
    cdef int64_t last = 0       # when the first look found nothing
    cdef int64_t away = 0       # of the time since then, given to others
    cdef int64_t now
    cdef int _pause
    let_faults_through()
    while True:
        if (
            worker.spin_ns
            and pause_is_worth(&worker.pauses, worker.rings[REQUESTS])
            and not side_threads_work(worker)
        ):
            now = monotonic()
            if last == 0:
                last = now
                away = 0
            worker.counters.pauses += 1
            if pause_for_more(&worker.pauses, worker.rings[REQUESTS], now, worker.spin_ns):
                worker.counters.filled += 1
        if serve_batch(worker):
            pauses_batch(&worker.pauses)
            if last:
                # Bounded: this thread may have been off the CPU meanwhile.
                now = max(0, worker.batch.now_ns - last - away)
                worker.counters.spin_ns += <uint64_t>min(now, worker.spin_ns)
                last = 0
            if worker.counters.batches % DROPS_EVERY == 0:
                count_drops(worker)
            continue
        pauses_idle(&worker.pauses)
        if aoe_acquire32(worker.stop):
            break
        if worker.spin_ns:
            now = monotonic()
            if last == 0:
                last = now
                away = 0
            if now - last < worker.spin_ns:
                if side_threads_work(worker):
                    # They may be on this CPU, and clients may wait for nothing else.
                    sched_yield()
                    away += monotonic() - now
                    continue
                # Seldom enough to leave the ring's cache line to the kernel that fills it.
                for _pause in range(SPIN_PAUSES):
                    aoe_relax()
                continue
            worker.counters.spin_ns += <uint64_t>max(0, min(now - last - away, worker.spin_ns))
        sleep_for_frames(worker)
        last = 0
    count_drops(worker)


cdef inline bint side_threads_work(const Worker *worker) noexcept nogil:
    """Whether an acknowledgement or a read waits for a side thread; a hint, so without a lock."""
    return (
        worker.queue.line.taken != worker.queue.line.done
        or worker.fetches.line.taken != worker.fetches.line.done
    )


cdef void sleep_for_frames(Worker *worker) noexcept nogil:
    """Until a frame, an error or the word to stop. An interface that is down is no error."""
    cdef pollfd ready[3]
    cdef int i
    for i in range(2):
        ready[i].fd = worker.rings[i].fd
        ready[i].events = POLLIN
    ready[2].fd = worker.stop_fd
    ready[2].events = POLLIN
    if poll(ready, 3, IDLE_MS) <= 0:
        count_drops(worker)
        return
    for i in range(2):
        if ready[i].revents & POLLERR:
            # ENETDOWN: the kernel listens again by itself once the interface is up.
            socket_error(worker.rings[i].fd)


cdef void count_drops(Worker *worker) noexcept nogil:
    worker.counters.drops += ring_drops(worker.rings[REQUESTS])
    worker.counters.drops += ring_drops(worker.rings[PAYLOADS])


cdef bint serve_batch(Worker *worker) noexcept nogil:
    """Answer up to BATCH_FRAMES that have arrived; False if there were none."""
    cdef Batch *batch = worker.batch
    cdef uint32_t frames = 0
    cdef uint32_t limit = BATCH_FRAMES // 2
    cdef uint32_t size = 0
    cdef uint32_t first
    cdef uint32_t i
    cdef int kind
    cdef const uint8_t *frame
    cdef Reply *reply
    cdef int64_t arrived
    cdef bint deferred = False
    cdef bint greedy = False

    if (
        ring_peek(worker.rings[REQUESTS], &size) == NULL
        and ring_peek(worker.rings[PAYLOADS], &size) == NULL
        and worker.backlog.count == 0
    ):
        return False
    batch.table = enter(worker.reader, worker.table)
    batch.now_ns = monotonic()
    batch.count = 0
    batch.bodies = 0
    batch.guarded = 0
    # Writes first, as a read that follows its write should see it; half a batch at most, so that
    # readers are never starved.
    for kind in range(PAYLOADS, REQUESTS - 1, -1):
        while frames < limit and batch.count < BATCH_FRAMES:
            frame = ring_peek(worker.rings[kind], &size)
            if frame == NULL:
                break
            arrived = ring_arrival(worker.rings[kind])
            if is_greedy(worker.clients, frame, arrived, worker.patience) and kind == REQUESTS:
                put_last(worker, frame, size, arrived)
                greedy = True
            else:
                first = batch.count
                if handle(batch, frame, size):
                    note_frame(worker.clients, batch, first, frame, size, arrived)
                for i in range(first, batch.count):
                    if batch.replies[i].late:
                        put_aside(worker, &batch.replies[i], frame)
                    else:
                        prefetch_data(&batch.replies[i])
            ring_pop(worker.rings[kind])
            frames += 1
        limit = BATCH_FRAMES
    if worker.backlog.count and not greedy:
        serve_postponed(worker, frames)
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.late:
            reply.client = NULL
        elif reply.sync != NULL:
            deferred = True
        elif reply.broadcast and put_off(
            worker.spread, reply, batch.now_ns, worker.rings[REQUESTS].fd
        ):
            reply.client = NULL
        else:
            if reply.image != NULL:
                if reply.size == 0:
                    mark_dirty(worker.queue, reply.image)
                elif not is_resident(reply.image, reply.sector, reply.size):
                    # Not in memory: a fetch thread waits for the disk instead.
                    if hand_over(worker.fetches, reply, worker.rings[REQUESTS].fd):
                        reply.client = NULL
                        continue
            outbox_add(worker.outbox, batch, i)
    if deferred:
        defer(worker.queue, batch, worker.outbox, worker.rings[REQUESTS].fd)
    if worker.outbox.count:
        outbox_send(worker.outbox, batch, worker.rings[REQUESTS].fd)
        note_sent(batch)
    leave(worker.reader)
    worker.counters.batches += 1
    return True


cdef void put_aside(Worker *worker, const Reply *reply, const uint8_t *frame) noexcept nogil:
    """Have a write that must wait for a disk done by a side thread, or never if too many wait."""
    if not park(
        worker.parking, reply, frame + sizeof(AtaHeader), worker.rings[REQUESTS].fd
    ):
        worker.counters.overrun += 1


cdef void put_last(
    Worker *worker, const uint8_t *frame, uint32_t size, int64_t arrived
) noexcept nogil:
    """Serve this request of a greedy client after the others', or never if it has thousands."""
    if postpone(worker.backlog, frame, size, arrived):
        worker.counters.postponed += 1
    else:
        worker.counters.overrun += 1


cdef void serve_postponed(Worker *worker, uint32_t frames) noexcept nogil:
    """Fill the batch up with what was put last, or with its small share of a full one."""
    cdef Batch *batch = worker.batch
    cdef uint32_t share = BACKLOG_SHARE
    cdef const Postponed *late
    cdef uint32_t first
    if frames < BATCH_FRAMES - BACKLOG_SHARE:
        share = BATCH_FRAMES - frames
    while share and batch.count < BATCH_FRAMES:
        late = next_postponed(worker.backlog)
        if late == NULL:
            return
        first = batch.count
        if handle(batch, late.frame, late.size):
            note_frame(worker.clients, batch, first, late.frame, late.size, late.arrived)
        share -= 1
