"""Moves files to TFTP clients in a thread without the GIL, a connected socket for each transfer.

Two lists under one lock join the thread and the owner: orders go in, news come out, and an eventfd
on each side says so. ``outlet`` has the sends.
"""

import os
import threading

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read, write

from .batch cimport monotonic
from .outlet cimport (
    EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, Outlet,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, send_blocks, send_one, watch,
)
from .store cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)
from .transfer cimport (
    ASK, Deed, GONE, Machine, SAY_ILLEGAL, SEND_BLOCKS, SEND_OPENING, STOPPED, Transfer,
    machine_end, machine_expire, machine_receive, machine_start, say,
)

from .threads import begin


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    enum:
        MSG_DONTWAIT


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef enum:
    READY = 64                  # sockets looked at in one turn
    MESSAGE = 2048              # the longest packet of a client's that is looked at
    # Orders.
    START = 1
    STOP = 2
    SECOND = 1000000000
    # Timers are looked at this often at most.
    TICK = 10000000


# The thread's, but for what the lock guards.
cdef struct Hall:
    pthread_mutex_t lock
    Machine *orders             # guarded; first in, first out
    Machine **last_order        # guarded
    Machine *news               # guarded
    bint stop                   # guarded
    int wake                    # eventfd: there are orders
    int tell                    # eventfd: there are news
    Machine *running
    int64_t spin_ns
    int64_t due                 # no timer fires before
    uint64_t repeats
    Outlet out
    uint8_t message[MESSAGE]


cdef void ring_bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    cdef ssize_t _done = write(fd, &one, sizeof(one))


cdef void still_bell(int fd) noexcept nogil:
    cdef uint64_t many
    cdef ssize_t _done = read(fd, &many, sizeof(many))


cdef void report(Hall *hall, Machine *machine) noexcept nogil:
    """Put it on the list of news. What ended is the owner's from the moment the lock is free."""
    cdef bint first
    pthread_mutex_lock(&hall.lock)
    first = hall.news == NULL
    machine.shown = machine.end
    if not machine.news:
        machine.news = True
        machine.next_news = hall.news
        hall.news = machine
    pthread_mutex_unlock(&hall.lock)
    if first:
        ring_bell(hall.tell)


cdef void hall_loop(Hall *hall) noexcept nogil:
    """Serve until told to stop; what runs then ends as stopped."""
    cdef epoll_event ready[READY]
    cdef Machine *machine
    cdef int64_t now = 0
    cdef int64_t last = 0
    cdef int count
    cdef int i
    cdef bint woken
    while True:
        # Look a while, then sleep. One client waits for our wake-up more than for anything else,
        # and many pay for it: waking a CPU that sleeps takes longer than a block.
        if hall.running != NULL and now - last < hall.spin_ns:
            count = epoll_wait(hall.out.epoll, ready, READY, 0)
            if count == 0:
                sched_yield()
        else:
            count = epoll_wait(hall.out.epoll, ready, READY, patience(hall))
        now = monotonic()
        if count:
            last = now
        woken = False
        for i in range(count):
            machine = <Machine *>ready[i].data.ptr
            if machine == NULL:
                woken = True
            else:
                serve(hall, machine, ready[i].events, now)
        # After the sockets: what an order stops must not be among those still to be looked at.
        if woken:
            still_bell(hall.wake)
            if not take_orders(hall, now):
                break
        if now >= hall.due:
            look_at_timers(hall, now)
    while hall.running != NULL:
        machine_end(hall.running, STOPPED, 0, now)
        leave(hall, hall.running)


cdef int patience(Hall *hall) noexcept nogil:
    """Milliseconds until a timer may fire; -1: none runs."""
    cdef int64_t left
    if hall.running == NULL:
        return -1
    left = hall.due - monotonic()
    return 0 if left <= 0 else <int>(left // 1000000) + 1


cdef bint take_orders(Hall *hall, int64_t now) noexcept nogil:
    """Begin and stop transfers as told; False if the whole mover is to stop.

    An order for what has ended meanwhile is dropped under the lock: the owner may free it then.
    """
    cdef Machine *machine
    cdef int orders
    cdef bint stop
    while True:
        pthread_mutex_lock(&hall.lock)
        stop = hall.stop
        machine = hall.orders
        orders = 0
        if machine != NULL:
            take_order(hall, &hall.orders)
            orders = machine.orders if machine.end == 0 else 0
            machine.orders = 0
        pthread_mutex_unlock(&hall.lock)
        if machine == NULL:
            return not stop
        if orders & START and orders & STOP:
            # Stopped before it began: it never comes on the list nor to its socket.
            machine_end(machine, STOPPED, 0, now)
            report(hall, machine)
        elif orders & START:
            enter(hall, machine, now)
        elif orders & STOP:
            machine_end(machine, STOPPED, 0, now)
            leave(hall, machine)


cdef void take_order(Hall *hall, Machine **at) noexcept nogil:
    """Off the list of orders; under the lock."""
    cdef Machine *machine = at[0]
    at[0] = machine.next_order
    if hall.last_order == &machine.next_order:
        hall.last_order = at
    machine.ordered = False


cdef void enter(Hall *hall, Machine *machine, int64_t now) noexcept nogil:
    machine.next = hall.running
    if hall.running != NULL:
        hall.running.previous = machine
    hall.running = machine
    if watch(&hall.out, machine, EPOLLIN, EPOLL_CTL_ADD):
        machine_end(machine, GONE, errno, now)
        leave(hall, machine)
        return
    act(hall, machine, machine_start(machine, now), now)


cdef void leave(Hall *hall, Machine *machine) noexcept nogil:
    """It has ended: off the list, and its owner is told. It may be gone afterwards."""
    epoll_ctl(hall.out.epoll, EPOLL_CTL_DEL, machine.socket, NULL)
    if machine.previous != NULL:
        machine.previous.next = machine.next
    else:
        hall.running = machine.next
    if machine.next != NULL:
        machine.next.previous = machine.previous
    machine.next = NULL
    machine.previous = NULL
    hall.repeats += machine.repeats
    report(hall, machine)


cdef void serve(Hall *hall, Machine *machine, uint32_t events, int64_t now) noexcept nogil:
    """Its socket is ready: one packet of the client's, or room for more of ours."""
    cdef ssize_t got
    cdef bint answered = machine.answered
    cdef bint opened = machine.opened
    cdef Deed deed
    if events & EPOLLOUT:
        watch(&hall.out, machine, EPOLLIN, EPOLL_CTL_MOD)
        machine.blocked = False
        act(hall, machine, SEND_BLOCKS, now)
        return
    got = recv(machine.socket, hall.message, MESSAGE, MSG_DONTWAIT)
    if got < 0:
        if errno != EAGAIN and errno != EINTR:
            machine_end(machine, GONE, errno, now)  # ICMP: the client closed its port
            leave(hall, machine)
        return
    deed = machine_receive(machine, hall.message, <size_t>got, now)
    if machine.end:
        leave(hall, machine)
        return
    if deed == ASK or machine.answered != answered or machine.opened != opened:
        report(hall, machine)
    act(hall, machine, deed, now)


cdef void look_at_timers(Hall *hall, int64_t now) noexcept nogil:
    cdef Machine *machine = hall.running
    cdef Machine *next
    hall.due = now + <int64_t>255 * SECOND
    while machine != NULL:
        next = machine.next
        if now >= machine.deadline:
            act(hall, machine, machine_expire(machine, now), now)
        else:
            hall.due = min(hall.due, machine.deadline)
        machine = next
    hall.due = max(hall.due, now + TICK)


cdef void act(Hall *hall, Machine *machine, Deed deed, int64_t now) noexcept nogil:
    """Do it; what has ended leaves."""
    cdef size_t size
    if deed == SEND_OPENING:
        send_one(&hall.out, machine, machine.opening, machine.opening_size, now)
    elif deed == SAY_ILLEGAL:
        size = say(hall.out.room, 4, b"this is a read transfer")
        send_one(&hall.out, machine, hall.out.room, size, now)
    elif deed == SEND_BLOCKS:
        send_blocks(&hall.out, machine, now)
    if machine.end:
        leave(hall, machine)
    else:
        hall.due = min(hall.due, machine.deadline)


cdef class Mover:
    """Transfers of many clients in one thread; between ``start`` and ``stop``.

    spin_us: how long it looks for the next packet before it sleeps, while somebody loads; off on
    a machine with one CPU. ``fileno`` is readable while ``news`` has something to say.
    """

    cdef Hall *_hall
    cdef object _thread
    cdef set _transfers

    def __cinit__(self, *, spin_us=50):
        if not 0 <= spin_us <= 1000000:
            raise ValueError(f"spin_us {spin_us}: 0 to 1000000")
        self._hall = <Hall *>calloc(1, sizeof(Hall))
        if self._hall == NULL:
            raise MemoryError()
        self._hall.out.epoll = self._hall.wake = self._hall.tell = -1
        pthread_mutex_init(&self._hall.lock, NULL)
        self._hall.last_order = &self._hall.orders
        self._hall.spin_ns = spin_us * 1000 if len(os.sched_getaffinity(0)) > 1 else 0
        self._hall.out.segmenting = True
        self._transfers = set()

    def __dealloc__(self):
        # The thread holds a reference to its mover: it does not run any more.
        pthread_mutex_destroy(&self._hall.lock)
        free(self._hall)

    @property
    def segmenting(self):
        """Whether windows leave in one call; turns itself off where the kernel cannot."""
        return bool(self._hall.out.segmenting)

    @segmenting.setter
    def segmenting(self, bint value):
        self._hall.out.segmenting = value

    @property
    def counters(self):
        """packets sent, repeats by the timer, send_errors."""
        return {
            "packets": self._hall.out.packets,
            "repeats": self._hall.repeats,
            "send_errors": self._hall.out.send_errors,
        }

    def fileno(self):
        """The descriptor to wait for."""
        return self._hall.tell

    def start(self):
        """Start the thread. OSError: no descriptors left; AoeError: no room for a thread.

        Nothing is left behind then.
        """
        cdef epoll_event event
        if self._thread is not None:
            raise RuntimeError("this mover is running already")
        try:
            self._hall.out.epoll = epoll_create1(EPOLL_CLOEXEC)
            if self._hall.out.epoll < 0:
                raise OSError(errno, os.strerror(errno))
            self._hall.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._hall.tell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            memset(&event, 0, sizeof(event))
            event.events = EPOLLIN
            if epoll_ctl(self._hall.out.epoll, EPOLL_CTL_ADD, self._hall.wake, &event):
                raise OSError(errno, os.strerror(errno))
            self._hall.stop = False
            thread = threading.Thread(target=self._run, name="tftp-mover", daemon=True)
            begin(thread)
        except BaseException:
            self._close()
            raise
        self._thread = thread

    def _run(self):
        with nogil:
            hall_loop(self._hall)

    def add(self, Transfer transfer not None, int fd):
        """Begin ``transfer`` on the connected socket ``fd``.

        The caller keeps ``fd`` open until ``news`` says that it ended.
        """
        if self._thread is None or transfer in self._transfers or transfer.machine.owner != NULL:
            raise RuntimeError("a transfer begins once, while its mover runs")
        transfer.machine.socket = fd
        transfer.machine.owner = <void *>transfer
        self._transfers.add(transfer)
        self._order(&transfer.machine, START)

    def end(self, Transfer transfer not None):
        """Stop it, unless it has ended; ``news`` tells."""
        if transfer in self._transfers:
            self._order(&transfer.machine, STOP)

    cdef void _order(self, Machine *machine, int order):
        pthread_mutex_lock(&self._hall.lock)
        if machine.shown == 0:
            machine.orders |= order
            if not machine.ordered:
                machine.ordered = True
                machine.next_order = NULL
                self._hall.last_order[0] = machine
                self._hall.last_order = &machine.next_order
        pthread_mutex_unlock(&self._hall.lock)
        ring_bell(self._hall.wake)

    def news(self):
        """Transfers that were opened, answered, asked on or that ended since the last call.

        One whose ``end`` showed already may come once more.
        """
        cdef Machine *machine
        cdef Machine **at
        found = []
        if self._hall.tell >= 0:
            still_bell(self._hall.tell)
        pthread_mutex_lock(&self._hall.lock)
        while self._hall.news != NULL:
            machine = self._hall.news
            self._hall.news = machine.next_news
            machine.news = False
            if machine.shown and machine.ordered:
                at = &self._hall.orders
                while at[0] != machine:
                    at = &at[0].next_order
                take_order(self._hall, at)
            transfer = <Transfer>machine.owner
            found.append(transfer)
            if machine.shown:
                self._transfers.discard(transfer)
        pthread_mutex_unlock(&self._hall.lock)
        found.reverse()
        return found

    def stop(self):
        """End all transfers and the thread; ``news`` tells of them. Stopping twice is fine."""
        if self._thread is None:
            return
        pthread_mutex_lock(&self._hall.lock)
        self._hall.stop = True
        pthread_mutex_unlock(&self._hall.lock)
        ring_bell(self._hall.wake)
        self._thread.join()
        self._thread = None
        self._close()

    cdef void _close(self):
        for fd in (self._hall.out.epoll, self._hall.wake, self._hall.tell):
            if fd >= 0:
                os.close(fd)
        self._hall.out.epoll = self._hall.wake = self._hall.tell = -1
