"""Worker threads without the GIL: harvest, handle, send; the sync thread; counters.

One worker for each ring pair of an interface takes what has arrived, up to a batch, answers it
with one sendmmsg, and spins for a moment before it sleeps: waking up is most of what a client with
one request outstanding waits for. A write that must be durable is acknowledged by the sync thread,
which takes all that wait, syncs each export once, and sends them (group commit): while one sync
runs the next group gathers.
"""

import os
import threading

import numpy as np

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from .ring cimport (
    PAYLOADS, REQUESTS, Ring, free_outbox, new_outbox, outbox_add, outbox_send, ring_drops,
    ring_peek, ring_pop, socket_error,
)
from .store cimport (
    backing_hold, backing_release, backing_sync, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from .target cimport BATCH_FRAMES, BATCH_REPLIES, Reply, fail_ata, free_batch, handle, new_batch
from .view cimport enter, leave
from .wire cimport ATA_UNC, SHORTEST_REPLY

from .ring import link, open_group
from .wire import AoeError


cdef extern from "atomics.h" nogil:
    uint32_t aoe_acquire32(const uint32_t *p)
    void aoe_release32(uint32_t *p, uint32_t value)
    uint32_t aoe_swap32(uint32_t *p, uint32_t value)
    uint64_t aoe_add64(uint64_t *p, uint64_t n)
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


_COUNTS = [
    "frames", "replies", "ignored", "runt", "response_flag", "group_source", "not_ours",
    "ata_errors", "aoe_errors", "drops", "send_errors", "batches", "syncs",
]
COUNTERS = np.dtype({
    "names": _COUNTS, "formats": ["u8"] * len(_COUNTS), "itemsize": sizeof(Counters),
})

cdef enum:
    # A writeback export is synced this often.
    WRITEBACK_SECONDS = 5
    # An idle worker looks at the drop counter this often.
    IDLE_MS = 1000
    # A busy one after so many batches.
    DROPS_EVERY = 4096
    MAX_WORKERS = 64


cdef inline int64_t monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef void worker_loop(Worker *worker) noexcept nogil:
    """Serve until told to stop, then what has arrived by then."""
    cdef int64_t last = monotonic()
    cdef int64_t now
    cdef int _pause
    while True:
        if serve_batch(worker):
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
                # A few pauses for each look at the clock.
                for _pause in range(8):
                    aoe_relax()
                continue
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
            handle(batch, frame, size)
            ring_pop(worker.rings[kind])
            frames += 1
        limit = BATCH_FRAMES
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.sync != NULL:
            deferred = True
        else:
            if reply.image != NULL and reply.size == 0:
                mark_dirty(worker, reply.image)
            outbox_add(worker.outbox, batch, i)
    if deferred:
        defer(worker)
    if worker.outbox.count:
        outbox_send(worker.outbox, batch, worker.rings[REQUESTS].fd)
    leave(worker.reader)
    worker.counters.batches += 1
    return True


cdef void mark_dirty(Worker *worker, Backing *backing) noexcept nogil:
    """Have a writeback export synced within WRITEBACK_SECONDS."""
    cdef Dirty *node
    if aoe_swap32(&backing.dirty, 1):
        return
    node = <Dirty *>malloc(sizeof(Dirty))
    if node == NULL:
        backing.dirty = 0  # the next write tries again; the kernel writes back anyway
        return
    backing_hold(backing)
    node.backing = backing
    pthread_mutex_lock(&worker.queue.lock)
    node.next = worker.queue.dirty
    worker.queue.dirty = node
    pthread_mutex_unlock(&worker.queue.lock)


cdef void defer(Worker *worker) noexcept nogil:
    """Hand the batch's replies that need a sync to the sync thread, in their order."""
    cdef Batch *batch = worker.batch
    cdef Waiting *first = NULL
    cdef Waiting **last = &first
    cdef Waiting *node
    cdef Reply *reply
    cdef uint32_t i
    for i in range(batch.count):
        reply = &batch.replies[i]
        if reply.sync == NULL:
            continue
        node = <Waiting *>malloc(sizeof(Waiting))
        if node == NULL:
            # No promise without a sync: this one write fails.
            fail_ata(reply, ATA_UNC)
            outbox_add(worker.outbox, batch, i)
            continue
        backing_hold(reply.sync)
        node.next = NULL
        node.backing = reply.sync
        node.fd = worker.rings[REQUESTS].fd
        memcpy(node.head, reply.head, SHORTEST_REPLY)
        last[0] = node
        last = &node.next
    if first == NULL:
        return
    pthread_mutex_lock(&worker.queue.lock)
    worker.queue.last[0] = first
    worker.queue.last = last
    pthread_cond_signal(&worker.queue.wake)
    pthread_mutex_unlock(&worker.queue.lock)


cdef void sync_loop(Queue *queue, Batch *batch, Outbox *outbox) noexcept nogil:
    """Sync and acknowledge until told to stop, then what is left."""
    cdef int64_t next_writeback = monotonic() + <int64_t>WRITEBACK_SECONDS * 1000000000
    cdef uint64_t round = 0
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
            commit(waiting, round, batch, outbox)
        write_back(dirty, batch.counters)


# Rounds are numbered in the whole process: two servers may share an export.
cdef uint64_t rounds = 0


cdef void commit(Waiting *waiting, uint64_t round, Batch *batch, Outbox *outbox) noexcept nogil:
    """One sync for each export, then every acknowledgement; frees the list."""
    cdef Waiting *node = waiting
    cdef Waiting *next
    cdef Reply *reply
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
            if node.backing.sync_error:
                fail_ata(reply, ATA_UNC)
                batch.counters.ata_errors += 1
            outbox_add(outbox, batch, batch.count)
            batch.count += 1
            node = node.next
        outbox_send(outbox, batch, waiting.fd)
        while waiting != node:
            next = waiting.next
            backing_release(waiting.backing)
            free(waiting)
            waiting = next


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
        free(dirty)
        dirty = next


cdef void free_queue(Queue *queue) noexcept nogil:
    if queue != NULL:
        pthread_cond_destroy(&queue.wake)
        pthread_mutex_destroy(&queue.lock)
        free(queue)


cdef Queue *new_queue() except NULL:
    cdef Queue *queue = <Queue *>calloc(1, sizeof(Queue))
    if queue == NULL:
        raise MemoryError()
    pthread_mutex_init(&queue.lock, NULL)
    pthread_cond_init(&queue.wake, NULL)
    queue.last = &queue.first
    return queue


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
        """Zero-copy structured array of COUNTERS: a row for each worker, the last the syncer's."""
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
        syncer = threading.Thread(target=self._run_syncer, name="aoe-sync", daemon=True)
        self._threads = [
            threading.Thread(target=self._run_worker, args=(i,), name=f"aoe-{i}", daemon=True)
            for i in range(self._total)
        ]
        self._syncer = syncer
        syncer.start()
        for thread in self._threads:
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

    def _run_syncer(self):
        cdef Batch *batch = new_batch()
        cdef Outbox *outbox = NULL
        try:
            batch.counters = <Counters *>self.region.start + self._total
            outbox = new_outbox()
            with nogil:
                sync_loop(self._queue, batch, outbox)
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
        with nogil:
            pthread_mutex_lock(&self._queue.lock)
            self._queue.stop = 1
            pthread_cond_signal(&self._queue.wake)
            pthread_mutex_unlock(&self._queue.lock)
        self._syncer.join()
        self._syncer = None
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
