"""One file on its way to one TFTP client: the state machine, without socket, clock or lock.

RFC 1350, 2347 (the opening OACK), 7440 (windowsize). Only the timer repeats, never a duplicate
acknowledgement (the Sorcerer's Apprentice; a Raspberry Pi 4 hangs on duplicate DATA). Blocks are
counted without a limit; the wire's 16 bits roll over to 0. What may be asked for, which file that
is and which options are agreed on, the caller has decided before.

Driven by hand (``Transfer.start``, ``receive``, ``expire``) or by ``aoe_fast.mover``.
"""

import os

from libc.errno cimport EINTR, errno
from libc.string cimport memcpy, memset, strlen
from posix.stat cimport fstat, struct_stat
from posix.types cimport off_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv(int fd, const iovec *parts, int count, off_t offset)


cdef enum:
    OP_REQUEST = 1
    OP_WRITE = 2
    OP_DATA = 3
    OP_ACK = 4
    OP_ERROR = 5
    OP_OACK = 6
    TRIES = 6
    LAST_TRIES = 3              # for the last window, whose acknowledgement may never come
    LONGEST_WAIT_S = 8
    SECOND = 1000000000

ENDS = (
    "", "complete", "unconfirmed", "silent", "refused", "gone", "short", "unreadable", "stopped",
)


cdef Deed machine_start(Machine *machine, int64_t now) noexcept nogil:
    machine.began = now
    machine.deadline = now + machine.patience
    if machine.opening_size:
        return SEND_OPENING
    machine.opened = True
    machine.goal = min(<uint64_t>machine.window, machine.last)
    return SEND_BLOCKS


cdef Deed machine_receive(
    Machine *machine, const uint8_t *data, size_t size, int64_t now
) noexcept nogil:
    """A packet of the client's; rubbish is nothing."""
    cdef uint32_t op
    cdef uint32_t number
    cdef uint32_t words
    if machine.end or size < 4 or data[0]:
        return NOTHING
    op = data[1]
    number = (<uint32_t>data[2] << 8) | data[3]
    if op == OP_ACK:
        return acknowledged(machine, number, now)
    if op == OP_ERROR:
        words = <uint32_t>min(size - 4, sizeof(machine.words))
        memcpy(machine.words, data + 4, words)
        machine.words_size = words
        machine_end(machine, REFUSED, <int>number, now)
        return NOTHING
    if op == OP_REQUEST and machine.asks:
        if machine.words_size == 0 and size <= sizeof(machine.words):
            memcpy(machine.words, data, size)
            machine.words_size = <uint32_t>size
            return ASK
        return NOTHING
    return SAY_ILLEGAL if op in (OP_REQUEST, OP_WRITE, OP_DATA, OP_OACK) else NOTHING


cdef Deed acknowledged(Machine *machine, uint32_t number, int64_t now) noexcept nogil:
    cdef uint64_t step
    if not machine.opened:
        if number:
            return NOTHING
        machine.opened = True
    else:
        step = (number - <uint32_t>machine.acked) & 0xFFFF
        if step == 0 or machine.acked + step > machine.sent:
            return NOTHING  # a duplicate or a stale one: the timer's business
        machine.acked += step
    machine.answered = True
    if machine.acked == machine.last:
        machine_end(machine, COMPLETE, 0, now)
        return NOTHING
    machine.tries = 0
    machine.patience = machine.wait
    machine.deadline = now + machine.wait
    # Less than the whole window: go back to it (RFC 7440 section 4).
    machine.sent = machine.acked
    machine.goal = min(machine.acked + machine.window, machine.last)
    return SEND_BLOCKS


cdef Deed machine_expire(Machine *machine, int64_t now) noexcept nogil:
    """The timer: again from the last acknowledgement on, or the end. Too early is nothing."""
    if machine.end or now < machine.deadline:
        return NOTHING
    machine.tries += 1
    if machine.opened and machine.sent == machine.last and machine.tries > LAST_TRIES:
        machine_end(machine, UNCONFIRMED, 0, now)
        return NOTHING
    if machine.tries > TRIES:
        machine_end(machine, SILENT, 0, now)
        return NOTHING
    machine.patience = min(
        machine.patience * 2, max(<int64_t>LONGEST_WAIT_S * SECOND, machine.wait)
    )
    machine.deadline = now + machine.patience
    machine.repeats += 1
    if not machine.opened:
        return SEND_OPENING
    machine.sent = machine.acked
    return SEND_BLOCKS


cdef void machine_end(Machine *machine, End how, int code, int64_t now) noexcept nogil:
    """Once; what ends later changes nothing."""
    if machine.end == RUNNING:
        machine.code = code
        machine.ended = now
        machine.end = how


cdef size_t lay_out(
    Machine *machine, uint8_t *into, int64_t now, uint32_t *blocks
) noexcept nogil:
    """The next blocks up to the goal as DATA packets behind one another: how many bytes.

    As many as ROOM takes; all but the last are of one size. ``sent`` is the caller's to advance.
    A file that cannot be read any more ends the transfer: then it is an ERROR packet, 0 blocks.
    """
    cdef iovec parts[LONGEST_WINDOW]
    cdef uint32_t step = machine.blksize + 4
    cdef uint64_t first = machine.sent + 1
    cdef uint64_t start = machine.sent * machine.blksize
    cdef uint32_t count = <uint32_t>min(
        machine.goal - machine.sent, <uint64_t>min(<uint32_t>LONGEST_WINDOW, ROOM // step)
    )
    cdef size_t payload = <size_t>min(
        machine.size - start, <uint64_t>count * machine.blksize
    )
    cdef size_t left = payload
    cdef size_t part
    cdef uint8_t *at = into
    cdef ssize_t got
    cdef int code
    cdef uint32_t i
    for i in range(count):
        part = min(left, <size_t>machine.blksize)
        at[0] = 0
        at[1] = OP_DATA
        at[2] = ((first + i) >> 8) & 0xFF
        at[3] = (first + i) & 0xFF
        parts[i].iov_base = at + 4
        parts[i].iov_len = part
        if machine.content != NULL:
            memcpy(at + 4, machine.content + start, part)
            start += part
        left -= part
        at += part + 4
    blocks[0] = count
    if machine.content == NULL:
        got = 0
        if payload:
            got = preadv(machine.fd, parts, <int>count, <off_t>start)
            while got < 0 and errno == EINTR:
                got = preadv(machine.fd, parts, <int>count, <off_t>start)
        code = errno if got < 0 else 0
        # Who has the last block has the file as it was when it was asked for.
        if got != <ssize_t>payload or (first + count > machine.last and is_changed(machine)):
            blocks[0] = 0
            machine_end(machine, UNREADABLE if code else SHORT, code, now)
            if code:
                return say(into, 0, b"the file cannot be read")
            return say(into, 0, b"the file was changed meanwhile")
    return <size_t>(at - into)


cdef bint is_changed(Machine *machine) noexcept nogil:
    cdef struct_stat info
    if fstat(machine.fd, &info):
        return True
    return <uint64_t>info.st_size != machine.size or mtime(&info) != machine.changed


cdef int64_t mtime(const struct_stat *info) noexcept nogil:
    return <int64_t>info.st_mtim.tv_sec * SECOND + info.st_mtim.tv_nsec


cdef size_t say(uint8_t *into, int code, const char *text) noexcept nogil:
    """An ERROR packet (RFC 1350 section 5): its size."""
    cdef size_t size = strlen(text) + 1
    into[0] = 0
    into[1] = OP_ERROR
    into[2] = 0
    into[3] = <uint8_t>code
    memcpy(into + 4, text, size)
    return size + 4


cdef class Transfer:
    """``source`` on its way to one client: a descriptor of a regular file, or bytes.

    size: how much of it was promised; blksize 8 to 65464; windowsize 1 to 64; wait: seconds until
    the first repetition; opening: the OACK packet, if options were agreed on. The caller keeps a
    descriptor open until ``end`` says that it is over. asks: a request on the transfer's own
    socket is no mistake, but found in ``question``. ValueError for numbers outside these bounds,
    OSError for a descriptor that is none.

    ``start``, ``receive`` and ``expire`` take the time in seconds and return packets to send;
    ``deadline`` is when ``expire`` is due.
    """

    def __cinit__(
        self, source, size, *, blksize=512, windowsize=1, double wait=1.0, bytes opening=b"",
        bint asks=False,
    ):
        cdef Machine *machine = &self.machine
        cdef struct_stat info
        if not 8 <= blksize <= LONGEST_BLOCK:
            raise ValueError(f"blksize {blksize}: 8 to {LONGEST_BLOCK}")
        if not 1 <= windowsize <= LONGEST_WINDOW:
            raise ValueError(f"windowsize {windowsize}: 1 to {LONGEST_WINDOW}")
        if not 0.001 <= wait <= 255:
            raise ValueError(f"wait {wait}: 0.001 to 255 seconds")
        if not 0 <= size < 1 << 48:
            raise ValueError(f"size {size}: 0 to {(1 << 48) - 1}")
        memset(machine, 0, sizeof(Machine))
        self.source = source
        self._opening = opening
        machine.opening = <const uint8_t *><const char *>opening
        machine.opening_size = <uint32_t>len(opening)
        if machine.opening_size > ROOM:
            raise ValueError("the opening is longer than a packet")
        machine.fd = -1
        if isinstance(source, bytes):
            if len(source) < size:
                raise ValueError(f"{len(source)} bytes cannot give {size}")
            machine.content = <const uint8_t *><const char *>source
        else:
            machine.fd = source
            if fstat(machine.fd, &info):
                raise OSError(errno, os.strerror(errno))
            machine.changed = mtime(&info)
        machine.size = size
        machine.blksize = blksize
        machine.window = windowsize
        machine.last = machine.size // machine.blksize + 1
        machine.wait = <int64_t>(wait * SECOND)
        machine.patience = machine.wait
        machine.asks = asks

    @property
    def size(self):
        """Bytes of the whole file."""
        return self.machine.size

    @property
    def acked(self):
        """How many blocks the client has acknowledged."""
        return self.machine.acked

    @property
    def opened(self):
        """Blocks go out: no options were agreed on, or the client acknowledged them."""
        return bool(self.machine.opened)

    @property
    def answered(self):
        """The client has acknowledged something."""
        return bool(self.machine.answered)

    @property
    def all_sent(self):
        """The last block has left at least once, and nothing was called back since."""
        return bool(self.machine.opened) and self.machine.sent == self.machine.last

    @property
    def repeats(self):
        """How often the timer sent something again."""
        return self.machine.repeats

    @property
    def end(self):
        """How it ended, one of ENDS; empty while it runs."""
        return ENDS[self.machine.shown]

    @property
    def code(self):
        """The client's error code ("refused"), or an errno ("gone", "unreadable")."""
        return self.machine.code

    @property
    def words(self):
        """The client's error text as it came ("refused")."""
        if self.machine.shown != REFUSED:
            return b""
        return self.machine.words[:self.machine.words_size].split(b"\0", 1)[0]

    @property
    def seconds(self):
        """From the start to the end."""
        return <double>(self.machine.ended - self.machine.began) / SECOND

    @property
    def deadline(self):
        """When ``expire`` is due, in seconds."""
        return <double>self.machine.deadline / SECOND

    def question(self):
        """The request that came on this transfer's socket (once), or empty."""
        if self.machine.end == REFUSED or not self.machine.words_size:
            return b""
        found = self.machine.words[:self.machine.words_size]
        self.machine.words_size = 0
        return found

    def start(self, double now):
        """The opening, or the first window."""
        return self._packets(machine_start(&self.machine, to_ns(now)), to_ns(now))

    def receive(self, const uint8_t[::1] data not None, double now):
        """What a packet of the client's leads to; nothing is raised."""
        cdef size_t size = <size_t>data.shape[0]
        if size == 0:
            return []
        return self._packets(machine_receive(&self.machine, &data[0], size, to_ns(now)), to_ns(now))

    def expire(self, double now):
        """What the timer leads to."""
        return self._packets(machine_expire(&self.machine, to_ns(now)), to_ns(now))

    def stop(self, double now):
        """End it from outside."""
        machine_end(&self.machine, STOPPED, 0, to_ns(now))
        self.machine.shown = self.machine.end

    cdef list _packets(self, Deed deed, int64_t now):
        cdef bytearray room = bytearray(ROOM)
        cdef uint8_t *into = <uint8_t *><char *>room
        cdef uint32_t blocks = 0
        cdef size_t size
        packets = []
        self.machine.shown = self.machine.end
        if deed == SEND_OPENING:
            return [self._opening]
        if deed == SAY_ILLEGAL:
            return [bytes(room[:say(into, 4, b"this is a read transfer")])]
        if deed == SEND_BLOCKS:
            while self.machine.sent < self.machine.goal:
                size = lay_out(&self.machine, into, now, &blocks)
                if not blocks:
                    packets.append(bytes(room[:size]))
                    self.machine.shown = self.machine.end
                    break
                step = self.machine.blksize + 4
                packets += [bytes(room[at:min(at + step, size)]) for at in range(0, size, step)]
                self.machine.sent += blocks
        return packets


cdef int64_t to_ns(double seconds):
    return <int64_t>(seconds * SECOND + 0.5)
