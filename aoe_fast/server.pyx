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
from libc.string cimport memcpy, memset

from .batch cimport BATCH_FRAMES, Reply, free_batch, monotonic, new_batch
from .ring cimport (
    PAYLOADS, REQUESTS, Ring, free_outbox, new_outbox, outbox_add, outbox_send,
    prefetch_data, ring_drops, ring_peek, ring_pop, socket_error,
)
from .syncer cimport SYNC_THREADS, defer, free_queue, mark_dirty, new_queue, stop_queue, sync_loop
from .target cimport handle
from .view cimport enter, leave

from .ring import link, open_group
from .wire import AoeError


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)
    void aoe_relax()


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
    SPIN_PAUSES = 2


cdef void worker_loop(Worker *worker) noexcept nogil:
    """Serve until told to stop, then what has arrived by then."""
    cdef int64_t last = 0
    cdef int64_t now
    cdef int _pause
    while True:
        if serve_batch(worker):
            if last:
                # Bounded: this thread may have been off the CPU meanwhile.
                now = worker.batch.now_ns - last
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
            if now - last < worker.spin_ns:
                # Seldom enough to leave the ring's cache line to the kernel that fills it.
                for _pause in range(SPIN_PAUSES):
                    aoe_relax()
                continue
            worker.counters.spin_ns += <uint64_t>worker.spin_ns
        sleep_for_frames(worker)
        last = 0
    count_drops(worker)


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
    cdef bint deferred = False

    if (
        ring_peek(worker.rings[REQUESTS], &size) == NULL
        and ring_peek(worker.rings[PAYLOADS], &size) == NULL
    ):
        return False
    batch.table = enter(worker.reader, worker.table)
    batch.now_ns = monotonic()
    batch.count = 0
    batch.bodies = 0
    # Writes first, as a read that follows its write should see it; half a batch at most, so that
    # readers are never starved.
    for kind in range(PAYLOADS, REQUESTS - 1, -1):
        while frames < limit and batch.count < BATCH_FRAMES:
            frame = ring_peek(worker.rings[kind], &size)
            if frame == NULL:
                break
            first = batch.count
            handle(batch, frame, size)
            for i in range(first, batch.count):
                prefetch_data(&batch.replies[i])
            ring_pop(worker.rings[kind])
            frames += 1
        limit = BATCH_FRAMES
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.sync != NULL:
            deferred = True
        else:
            if reply.image != NULL and reply.size == 0:
                mark_dirty(worker.queue, reply.image)
            outbox_add(worker.outbox, batch, i)
    if deferred:
        defer(worker.queue, batch, worker.outbox, worker.rings[REQUESTS].fd)
    if worker.outbox.count:
        outbox_send(worker.outbox, batch, worker.rings[REQUESTS].fd)
    leave(worker.reader)
    worker.counters.batches += 1
    return True


cdef class Server:
    """Serves ``target`` on Ethernet interfaces from ``start`` to ``stop``; a context manager.

    workers: threads for each interface, clients spread over them by MAC. ring_frames: requests
    that each worker can hold unanswered, 128 bytes each; write_frames: the same for writes, a
    frame of the MTU's size each. spin_us: how long an idle worker looks before it sleeps; off on
    a machine with one CPU. The MTU and the MAC are those at ``start``.
    AoeError: no such interface, no privilege, MTU too small.
    """

    def __cinit__(
        self, Target target not None, interfaces, *, int workers=1, ring_frames=8192,
        write_frames=2048, spin_us=50,
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
        self.ring_frames = ring_frames
        self.write_frames = write_frames
        self.spin_ns = spin_us * 1000 if len(os.sched_getaffinity(0)) > 1 else 0
        self._total = workers * <int>len(self.interfaces)
        self._stop_fd = -1
        self._rings = []
        self._threads = []
        self._syncers = []
        self.region = Region((self._total + 1) * sizeof(Counters))
        self._counters = np.frombuffer(self.region, dtype=COUNTERS)
        self._workers = <Worker *>calloc(<size_t>self._total, sizeof(Worker))
        if self._workers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        # Threads hold a reference to their server: none runs any more.
        free(self._workers)

    @property
    def counters(self):
        """Zero-copy structured array of COUNTERS: a row for each worker, then the syncers' one."""
        return self._counters

    @property
    def running(self):
        """True between ``start`` and ``stop``."""
        return bool(self._threads)

    def start(self):
        """Listen and start the threads; nothing is left behind if it raises."""
        if self._threads:
            raise RuntimeError("this server is running already")
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        self._syncers = [
            threading.Thread(target=self._run_syncer, args=(i,), name=f"aoe-sync-{i}", daemon=True)
            for i in range(SYNC_THREADS)
        ]
        self._threads = [
            threading.Thread(target=self._run_worker, args=(i,), name=f"aoe-{i}", daemon=True)
            for i in range(self._total)
        ]
        for thread in (*self._syncers, *self._threads):
            thread.start()

    cdef int _open(self) except -1:
        cdef Counters *counters = <Counters *>self.region.start
        cdef Worker *worker
        cdef Ring ring
        cdef int i = 0
        self._stop = 0
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queue = new_queue()
        for interface in self.interfaces:
            mac, mtu = link(interface)
            bytes_each = 1 << (mtu + 95).bit_length()
            requests, payloads = [], []
            # In the order in which they join the group: so they join again after a link down.
            for kind, rings, frames, size in (
                (REQUESTS, requests, self.ring_frames, 128),
                (PAYLOADS, payloads, self.write_frames, bytes_each),
            ):
                for _ in range(self.workers):
                    ring = Ring(interface, kind, frames, size)
                    rings.append(ring)
                    self._rings.append(ring)
            for j in range(self.workers):
                worker = &self._workers[i]
                ring = requests[j]
                worker.rings[REQUESTS] = &ring.state
                ring = payloads[j]
                worker.rings[PAYLOADS] = &ring.state
                worker.batch = new_batch()
                self.target.prepare(worker.batch, mtu)
                memcpy(worker.batch.mac, <const char *><bytes>mac, 6)
                worker.batch.counters = worker.counters = &counters[i]
                worker.outbox = new_outbox()
                worker.reader = self.target.views.add_reader()
                worker.table = &self.target.views.table
                worker.queue = self._queue
                worker.spin_ns = self.spin_ns
                worker.stop_fd = self._stop_fd
                worker.stop = &self._stop
                i += 1
            open_group(requests, payloads)
        return 0

    def _run_worker(self, int number):
        cdef Worker *worker = &self._workers[number]
        with nogil:
            worker_loop(worker)

    def _run_syncer(self, int number):
        cdef Batch *batch = new_batch()
        cdef Outbox *outbox = NULL
        try:
            outbox = new_outbox()
            with nogil:
                sync_loop(
                    self._queue, batch, outbox, <Counters *>self.region.start + self._total,
                    number == 0,
                )
        finally:
            free_outbox(outbox)
            free_batch(batch)

    def stop(self):
        """Answer what has arrived, sync, stop the threads; stopping twice is fine."""
        if not self._threads:
            return
        threads, self._threads = self._threads, []
        aoe_release32(&self._stop, 1)
        os.eventfd_write(self._stop_fd, 1)
        for thread in threads:
            thread.join()
        # After the workers: what they wrote last is still synced and acknowledged.
        stop_queue(self._queue)
        for thread in self._syncers:
            thread.join()
        self._syncers = []
        self._release()

    cdef void _release(self) noexcept:
        cdef int i
        for i in range(self._total):
            if self._workers[i].reader != NULL:
                self.target.views.remove_reader(self._workers[i].reader)
            free_outbox(self._workers[i].outbox)
            free_batch(self._workers[i].batch)
        memset(self._workers, 0, <size_t>self._total * sizeof(Worker))
        for ring in self._rings:
            ring.close()
        self._rings = []
        free_queue(self._queue)
        self._queue = NULL
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
