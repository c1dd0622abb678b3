"""One interface of a server: its rings and workers, opened, changed and closed while others serve.

Everything here runs on the control side, one thread at a time (Server's lock). A worker's batch
is changed only while its thread is stopped; its rings go on receiving meanwhile, so a change of
MTU or MAC loses no frame.
"""

import os
import socket
import threading
from errno import EMFILE, ENFILE

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from .batch cimport free_batch, new_batch
from .outbox cimport free_outbox, new_outbox
from .ring cimport PAYLOADS, REQUESTS, Ring
from .sendring cimport SendRing
from .server cimport Server
from .worker cimport Worker, worker_loop

from .ring import link, open_group
from .sendring import open_send_ring
from .threads import begin
from .wire import AoeError


cdef extern from "atomics.h" nogil:
    void aoe_release32(uint32_t *p, uint32_t value)


cdef class Port:
    """Interface number ``index`` of ``server``; closed until ``open``."""

    cdef Server server
    cdef readonly str interface
    cdef readonly bytes mac
    cdef readonly int mtu
    cdef readonly int ifindex
    cdef readonly bint opened
    cdef int _first
    cdef uint32_t _frame_bytes
    cdef uint32_t _stop
    cdef int _stop_fd
    cdef list _rings
    cdef list _send_rings
    cdef list _threads
    cdef list _retired

    def __cinit__(self, Server server not None, int index):
        self.server = server
        self.interface = server.interfaces[index]
        self._first = index * server.workers
        self._stop_fd = -1
        self._rings = []
        self._send_rings = []
        self._threads = []
        self._retired = []

    @property
    def running(self):
        """True while the workers' threads run."""
        return bool(self._threads)

    def open(self):
        """Listen; nothing is left behind if it raises. AoeError: no interface, MTU too small."""
        cdef Worker *worker
        cdef Ring ring
        cdef int i
        try:
            self.mac, self.mtu = link(self.interface)
            self.ifindex = socket.if_nametoindex(self.interface)
            self._frame_bytes = 1 << (self.mtu + 95).bit_length()
            requests, payloads = [], []
            # In the order in which they join the group: so they join again after a link down.
            for kind, rings, frames, size in (
                (REQUESTS, requests, self.server.ring_frames, 128),
                (PAYLOADS, payloads, self.server.write_frames, self._frame_bytes),
            ):
                for _ in range(self.server.workers):
                    ring = Ring(self.interface, kind, frames, size)
                    rings.append(ring)
                    self._rings.append(ring)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            for i in range(self.server.workers):
                worker = &self.server._workers[self._first + i]
                ring = requests[i]
                worker.rings[REQUESTS] = &ring.state
                ring = payloads[i]
                worker.rings[PAYLOADS] = &ring.state
                worker.batch = new_batch()
                worker.outbox = new_outbox()
                self._add_send_ring(worker)
                worker.reader = self.server.target.views.add_reader()
                worker.stop_fd = self._stop_fd
                worker.stop = &self._stop
                self.server.furnish(self._first + i)
            self._prepare()
            open_group(requests, payloads)
        except OSError as error:
            self.close()
            what = "is it there and up?"
            if error.errno in (EMFILE, ENFILE):
                what = "raise the limit (ulimit -n, LimitNOFILE=)"
            raise AoeError(f"{self.interface}: {error.strerror}: {what}") from None
        except BaseException:
            self.close()
            raise
        self.opened = True

    cdef int _add_send_ring(self, Worker *worker) except -1:
        """Give a worker, and no side thread, a ring for what it sends, if the kernel has one."""
        cdef SendRing ring = open_send_ring(self.interface, self._frame_bytes)
        if ring is not None:
            self._send_rings.append(ring)
            worker.outbox.ring = &ring.state
        return 0

    cdef int _prepare(self) except -1:
        """Give the batches what the link decides; no worker runs."""
        cdef Worker *worker
        cdef int i
        for i in range(self.server.workers):
            worker = &self.server._workers[self._first + i]
            try:
                self.server.target.prepare(worker.batch, <uint32_t>self.mtu)
            except AoeError as error:
                raise AoeError(f"{self.interface}: {error}") from None
            memcpy(worker.batch.mac, <const char *>self.mac, 6)
        return 0

    def start(self):
        """Start the workers' threads. AoeError, and the port is shut: there cannot be so many."""
        aoe_release32(&self._stop, 0)
        try:
            for i in range(self.server.workers):
                thread = threading.Thread(
                    target=self._run, args=(i,), name=f"aoe-{self.interface}-{i}", daemon=True
                )
                begin(thread)
                self._threads.append(thread)
        except BaseException:
            self.retire()
            raise

    def _run(self, int number):
        cdef Worker *worker = &self.server._workers[self._first + number]
        with nogil:
            worker_loop(worker)

    def advertise(self, int number, uint16_t bufcnt):
        """Have worker ``number`` offer this queue depth from its next reply on."""
        if self.opened:
            # Two aligned bytes: a worker reads the old number or the new one.
            self.server._workers[self._first + number].batch.buffers = bufcnt

    def halt(self):
        """Have the workers answer what has arrived and end; the rings go on receiving."""
        threads, self._threads = self._threads, []
        if threads:
            aoe_release32(&self._stop, 1)
            os.eventfd_write(self._stop_fd, 1)
            for thread in threads:
                thread.join()
            os.eventfd_read(self._stop_fd)

    def close(self):
        """Give everything back; the workers are halted. Closing twice is fine."""
        self._let_go()
        for _, rings in self._retired:
            for ring in rings:
                ring.close()
        self._retired = []
        for ring in self._rings:
            ring.close()
        self._rings = []

    cdef void _let_go(self):
        cdef Worker *worker
        cdef int i
        self.opened = False
        for i in range(self.server.workers):
            worker = &self.server._workers[self._first + i]
            if worker.reader != NULL:
                self.server.target.views.remove_reader(worker.reader)
            free_outbox(worker.outbox)
            free_batch(worker.batch)
            memset(worker, 0, sizeof(Worker))
        for ring in self._send_rings:
            ring.close()
        self._send_rings = []
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
            self._stop_fd = -1

    def retire(self):
        """Halt and let go; the sockets stay open for what the side threads still have to send."""
        self.halt()
        self._let_go()
        if self._rings:
            self._retired.append((self.server.handed_over(), self._rings))
            self._rings = []

    def bury(self):
        """Close retired sockets that nobody can send on any more."""
        done = self.server.answered()
        left = []
        for marks, rings in self._retired:
            if all(now >= then for now, then in zip(done, marks, strict=True)):
                for ring in rings:
                    ring.close()
            else:
                left.append((marks, rings))
        self._retired = left

    def follow(self):
        """Look at the interface and do what its state asks for; a word for the log, or None.

        "gone", "back", "reopened" (longer frames, another card), "changed" (MTU or MAC).
        AoeError: it is there but cannot be served on; it is looked at again at the next event.
        """
        self.bury()
        try:
            mac, mtu = link(self.interface)
            ifindex = socket.if_nametoindex(self.interface)
        except (AoeError, OSError):
            if not self.opened:
                return None
            self.retire()
            return "gone"
        if (
            self.opened and ifindex == self.ifindex
            and 1 << (mtu + 95).bit_length() <= self._frame_bytes
        ):
            if (mac, mtu) == (self.mac, self.mtu):
                return None
            self.halt()
            self.mac, self.mtu = mac, mtu
            try:
                self._prepare()
            except BaseException:
                self.retire()
                raise
            self.start()
            return "changed"
        word = "reopened" if self.opened else "back"
        self.retire()
        self.open()
        self.start()
        return word

    def __dealloc__(self):
        if self._stop_fd >= 0:
            os.close(self._stop_fd)
