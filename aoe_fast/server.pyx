"""The server: its workers' rooms, its side threads, counters; start and stop.

Each interface has a port with rings and workers (port.pyx, worker.pyx). What must wait goes to side
threads that all of them share: syncs, reads and writes that need a disk, answers put off.
"""

import os
import threading

import numpy as np

from libc.stdlib cimport calloc, free

from .batch cimport free_batch, new_batch
from .outbox cimport free_outbox, new_outbox
from .backlog cimport Backlog
from .clients cimport CLIENTS, Client, Clients
from .fetch cimport fetch_loop, free_fetches, new_fetches, stop_fetches
from .parking cimport PARKERS, free_parking, new_parking, parking_loop, stop_parking
from .spread cimport free_spread, new_spread, spread_loop, stop_spread
from .syncer cimport SYNC_THREADS, free_queue, new_queue, stop_queue, sync_loop

from .caretaker import Caretaker
from .observe import CLIENT
from .threads import begin
from .wire import AoeError


_COUNTS = [
    "cold", "spread", "postponed", "overrun", "repeats", "announced", "parked", "reserved1",
    "frames", "replies", "ignored", "runt", "response_flag", "group_source", "not_ours",
    "ata_errors", "aoe_errors", "drops", "send_errors", "batches", "syncs", "spin_ns",
    "pauses", "filled",
]
COUNTERS = np.dtype({
    "names": _COUNTS, "formats": ["u8"] * len(_COUNTS), "itemsize": sizeof(Counters),
})

cdef enum:
    MAX_WORKERS = 64
    FETCHERS = 4


# One worker's, and no other thread's to write.
cdef struct Own:
    Clients clients
    Backlog backlog


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
        self, Target target not None, interfaces, *, workers=1, ring_frames=8192,
        write_frames=2048, spin_us=50, alarm=None, max_clients=None,
    ):
        if isinstance(interfaces, str):
            interfaces = (interfaces,)
        self.target = target
        self.interfaces = tuple(dict.fromkeys(interfaces))
        if not self.interfaces:
            raise AoeError("no interface to serve on: name one")
        if workers < 1 or workers * len(self.interfaces) > MAX_WORKERS:
            raise AoeError(f"workers {workers}: use 1 to {MAX_WORKERS}, all interfaces together")
        self.workers = workers
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
        self._total = self.workers * <int>len(self.interfaces)
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
        try:
            for i in range(SYNC_THREADS + 1 + FETCHERS + PARKERS):
                thread = threading.Thread(
                    target=self._run_side, args=(i,), name=f"aoe-side-{i}", daemon=True
                )
                begin(thread)
                self._side_threads.append(thread)
            for port in self.ports:
                port.start()
            self._caretaker.start()
        except BaseException:
            self._halt()
            raise

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
            self._parking.line.taken, self._fetches.line.taken, self._spread.line.taken,
            # Writes that wait will want an acknowledgement as well.
            self._queue.line.taken
            + self._parking.line.taken - self._parking.line.done,
        )

    def answered(self):
        """(writes, reads, broadcast answers, acknowledgements) that they are done with so far."""
        return (
            self._parking.line.done, self._fetches.line.done, self._spread.line.done,
            self._queue.line.done,
        )

    def stop(self):
        """Answer what has arrived, sync, stop the threads; stopping twice is fine."""
        if self._side_threads:
            self._halt()
            self.target.save_state()

    def _halt(self):
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
