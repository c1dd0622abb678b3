"""Worker threads without the GIL: harvest, handle, send; counters; start and stop.

One worker for each ring pair of an interface takes what has arrived, up to a batch, answers it
with one sendmmsg, and spins for a moment before it sleeps: waking up is most of what a client with
one request outstanding waits for. What must be synced first goes to the sync thread.
"""

import os
import threading

import numpy as np

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from .batch cimport BATCH_FRAMES, Reply, free_batch, monotonic, new_batch
from .ring cimport (
    PAYLOADS, REQUESTS, free_outbox, new_outbox, outbox_add, outbox_send, prefetch_data,
    ring_arrival, ring_drops, ring_peek, ring_pop, socket_error,
)
from .backlog cimport BACKLOG_SHARE, Backlog, Postponed, next_postponed, postpone
from .clients cimport CLIENTS, Client, Clients
from .fetch cimport fetch_loop, free_fetches, hand_over, new_fetches, stop_fetches
from .mapped cimport let_faults_through
from .observe cimport is_greedy, note_frame, note_sent
from .parking cimport PARKERS, free_parking, new_parking, park, parking_loop, stop_parking
from .residency cimport is_resident
from .spread cimport free_spread, new_spread, put_off, spread_loop, stop_spread
from .syncer cimport SYNC_THREADS, defer, free_queue, mark_dirty, new_queue, stop_queue, sync_loop
from .target cimport handle
from .view cimport enter, leave
from .wire cimport AtaHeader

from .caretaker import Caretaker
from .observe import CLIENT
from .wire import AoeError


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)
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


_COUNTS = [
    "cold", "spread", "postponed", "overrun", "repeats", "announced", "parked", "reserved1",
    "frames", "replies", "ignored", "runt", "response_flag", "group_source", "not_ours",
    "ata_errors", "aoe_errors", "drops", "send_errors", "batches", "syncs", "spin_ns",
]
COUNTERS = np.dtype({
    "names": _COUNTS, "formats": ["u8"] * len(_COUNTS), "itemsize": sizeof(Counters),
})

cdef enum:
    # An idle worker looks at the drop counter this often.
    IDLE_MS = 1000
    # A busy one after so many batches.
    DROPS_EVERY = 4096
    MAX_WORKERS = 64
    FETCHERS = 4
    SPIN_PAUSES = 2


# One worker's, and no other thread's to write.
cdef struct Own:
    Clients clients
    Backlog backlog


cdef void worker_loop(Worker *worker) noexcept nogil:
    """Serve until told to stop, then what has arrived by then."""
    cdef int64_t last = 0       # when the first look found nothing
    cdef int64_t away = 0       # of the time since then, given to others
    cdef int64_t now
    cdef int _pause
    let_faults_through()
    while True:
        if serve_batch(worker):
            if last:
                # Bounded: this thread may have been off the CPU meanwhile.
                now = max(0, worker.batch.now_ns - last - away)
                worker.counters.spin_ns += <uint64_t>min(now, worker.spin_ns)
                last = 0
            if worker.counters.batches % DROPS_EVERY == 0:
                count_drops(worker)
            continue
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
        worker.queue.taken != worker.queue.done or worker.fetches.taken != worker.fetches.done
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


def ring_sizes(max_clients, bufcnt, workers):
    """(ring_frames, write_frames) of each worker that lose nothing to ``max_clients``.

    Each client may have ``bufcnt`` requests out, and the spread over workers by MAC is uneven:
    half as much again for each. AoeError: more than 1 << 20 frames, or than 65536 for writes.
    """
    if not 1 <= max_clients <= 65536:
        raise AoeError(f"max_clients {max_clients}: use 1 to 65536")
    share = max_clients if workers == 1 else -(-3 * max_clients // (2 * workers))
    frames = 1 << max(11, (share * bufcnt - 1).bit_length())
    if frames > 1 << 20:
        raise AoeError(
            f"{max_clients} clients with {bufcnt} requests each need {frames} ring frames:"
            f" {1 << 20} at most: lower bufcnt, or use more workers"
        )
    # Long frames: what does not fit 64 MiB at an MTU of 9000 is throttled by bufcnt instead.
    return frames, min(frames, 4096)


cdef class Server:
    """Serves ``target`` on Ethernet interfaces from ``start`` to ``stop``; a context manager.

    workers: threads for each interface, clients spread over them by MAC. ring_frames: requests
    that each worker can hold unanswered, 128 bytes each; write_frames: the same for writes, a
    frame of the MTU's size each. spin_us: how long an idle worker looks before it sleeps; off on
    a machine with one CPU. max_clients: sizes the rings so that this many with full queues
    lose nothing. alarm: called with one line when frames are lost or an interface goes.
    The interfaces' MTU and MAC are followed, and those that go and come back.
    AoeError: no such interface, no privilege, MTU too small.
    """

    def __cinit__(
        self, Target target not None, interfaces, *, int workers=1, ring_frames=8192,
        write_frames=2048, spin_us=50, alarm=None, max_clients=None,
    ):
        if isinstance(interfaces, str):
            interfaces = (interfaces,)
        self.target = target
        self.interfaces = tuple(interfaces)
        self.workers = workers
        if not self.interfaces:
            raise AoeError("no interface to serve on: name one")
        if workers < 1 or workers * len(self.interfaces) > MAX_WORKERS:
            raise AoeError(f"workers {workers}: use 1 to {MAX_WORKERS}, all interfaces together")
        for name, value in (("ring_frames", ring_frames), ("write_frames", write_frames)):
            if not 64 <= value <= 1 << 20:
                raise AoeError(f"{name} {value}: use 64 to {1 << 20}")
        if not 0 <= spin_us <= 1000000:
            raise AoeError(f"spin_us {spin_us}: use 0 to 1000000")
        if max_clients is not None:
            ring_frames, write_frames = ring_sizes(max_clients, target.bufcnt, workers)
        self.ring_frames = ring_frames
        self.write_frames = write_frames
        self.max_clients = max_clients or 0
        self.spin_ns = spin_us * 1000 if len(os.sched_getaffinity(0)) > 1 else 0
        self._total = workers * <int>len(self.interfaces)
        self._alarm = alarm
        self.ports = []
        self._side_threads = []
        self.region = Region((self._total + 2 + FETCHERS + PARKERS) * sizeof(Counters))
        self._tables = Region(self._total * sizeof(Own))
        self._clients = np.ndarray(
            (self._total, CLIENTS), CLIENT, self._tables,
            <size_t>&(<Own *>0).clients.rows, (sizeof(Own), sizeof(Client)),
        )
        self._counters = np.frombuffer(self.region, dtype=COUNTERS)
        self._workers = <Worker *>calloc(<size_t>self._total, sizeof(Worker))
        if self._workers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        # Threads hold a reference to their server: none runs any more.
        free(self._workers)

    @property
    def counters(self):
        """Zero-copy structured array of COUNTERS: a row for each worker, then side threads'."""
        return self._counters

    @property
    def clients(self):
        """Zero-copy array of observe.CLIENT, CLIENTS places for each worker; unused: requests 0."""
        return self._clients

    @property
    def running(self):
        """True between ``start`` and ``stop``."""
        return bool(self._side_threads)

    def start(self):
        """Listen and start the threads; nothing is left behind if it raises."""
        from .port import Port  # here: it builds on this module

        if self._side_threads:
            raise RuntimeError("this server is running already")
        try:
            self._queue = new_queue()
            self._fetches = new_fetches()
            self._parking = new_parking()
            self._spread = new_spread()
            for number in range(len(self.interfaces)):
                port = Port(self, number)
                self.ports.append(port)
                port.open()
            self._caretaker = Caretaker(self, self._alarm)
        except BaseException:
            self._release()
            raise
        self._side_threads = [
            threading.Thread(target=self._run_side, args=(i,), name=f"aoe-side-{i}", daemon=True)
            for i in range(SYNC_THREADS + 1 + FETCHERS + PARKERS)
        ]
        for thread in self._side_threads:
            thread.start()
        for port in self.ports:
            port.start()
        self._caretaker.start()

    cdef int furnish(self, int number) except -1:
        """Give a worker what it shares with the others; its port gives it the rest."""
        cdef Worker *worker = &self._workers[number]
        cdef Own *table = <Own *>self._tables.start + number
        worker.counters = <Counters *>self.region.start + number
        worker.batch.counters = worker.counters
        worker.table = &self.target.views.table
        worker.queue = self._queue
        worker.fetches = self._fetches
        worker.parking = self._parking
        worker.batch.may_park = True
        worker.spread = self._spread
        worker.clients = &table.clients
        worker.backlog = &table.backlog
        worker.patience = 2 * <uint32_t>self.target.bufcnt + 16
        worker.spin_ns = self.spin_ns
        return 0

    def _run_side(self, int number):
        """Sync threads, which share a row of counters, the one that spreads, fetchers, parkers."""
        cdef Batch *batch = new_batch()
        cdef Outbox *outbox = NULL
        cdef Counters *rows = <Counters *>self.region.start + self._total
        try:
            outbox = new_outbox()
            if number >= SYNC_THREADS:
                batch.counters = rows + 1 + (number - SYNC_THREADS)
            with nogil:
                if number < SYNC_THREADS:
                    sync_loop(self._queue, batch, outbox, rows, number == 0)
                elif number == SYNC_THREADS:
                    spread_loop(self._spread, batch, outbox)
                elif number <= SYNC_THREADS + FETCHERS:
                    fetch_loop(self._fetches, batch, outbox)
                else:
                    parking_loop(self._parking, self._queue, batch, outbox)
        finally:
            free_outbox(outbox)
            free_batch(batch)

    def handed_over(self):
        """(writes, reads, broadcast answers, acknowledgements) given to side threads so far."""
        return (
            self._parking.taken, self._fetches.taken, self._spread.taken,
            # Writes that wait will want an acknowledgement as well.
            self._queue.taken + self._parking.taken - self._parking.done,
        )

    def answered(self):
        """(writes, reads, broadcast answers, acknowledgements) that they are done with so far."""
        return self._parking.done, self._fetches.done, self._spread.done, self._queue.done

    def stop(self):
        """Answer what has arrived, sync, stop the threads; stopping twice is fine."""
        if not self._side_threads:
            return
        self._caretaker.stop()
        for port in self.ports:
            port.halt()
        # After the workers: what they handed over last is still fetched, synced and answered.
        stop_fetches(self._fetches)
        stop_spread(self._spread)
        stop_parking(self._parking)
        threads, self._side_threads = self._side_threads, []
        for thread in threads[SYNC_THREADS:]:
            thread.join()
        # Last: what was parked is synced as well.
        stop_queue(self._queue)
        for thread in threads[:SYNC_THREADS]:
            thread.join()
        self._release()
        self.target.save_state()

    cdef void _release(self):
        for port in self.ports:
            port.close()
        self.ports = []
        free_queue(self._queue)
        self._queue = NULL
        free_fetches(self._fetches)
        self._fetches = NULL
        free_parking(self._parking)
        self._parking = NULL
        free_spread(self._spread)
        self._spread = NULL

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
