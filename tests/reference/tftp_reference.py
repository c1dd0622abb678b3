"""One TFTP read in plain Python: packets and the time in, packets and events out.

The same rules as ``aoe_fast.transfer`` with ``pxed.tftp.session``, written to be read: every test
of a conversation runs against both, and a differential test feeds both the same packets.
RFC 1350, 2347 (options), 2348 (blksize), 2349 (timeout, tsize), 7440 (windowsize). Only the timer
retransmits, never a duplicate ACK (the Sorcerer's Apprentice; a Pi 4 hangs on duplicate DATA).
Blocks are counted without a limit; the wire's 16 bits roll over to 0.
"""

from pxed.events import Event, Kind
from pxed.tftp.codec import Code, Error, Oack, Op, Request, decode, encode
from pxed.tftp.session import MAX_BLKSIZE, MAX_WINDOW, File, Peer, _transcoded, shown

_DEFAULT_BLKSIZE = 512
_HEADERS = 32  # IPv4 20, UDP 8, TFTP 4
_READ_AHEAD = 1 << 16
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 8.0
_TRIES = 6
_LAST_TRIES = 3  # for the final window: the ACK that never comes


class Session:
    """The transfer of ``file`` to one client; owns ``file`` and closes it at the end.

    ``start``, ``receive`` and ``expire`` return packets to send. Events collect in ``events`` until
    they are taken. ``deadline`` is when ``expire`` is due, on the clock of the ``now`` passed in;
    ``done`` ends everything. ``largest_block`` is a clamp for this client; blocks always fit the
    MTU.
    TftpError from the constructor if the request cannot be served.
    """

    def __init__(
        self,
        request: Request,
        file: File,
        peer: Peer,
        *,
        mtu: int = 1500,
        largest_block: int = MAX_BLKSIZE,
    ) -> None:
        self.request = request
        self.peer = peer
        self.events: list[Event] = []
        self.done = False
        self.deadline = 0.0
        self.blksize = _DEFAULT_BLKSIZE
        self.windowsize = 1
        self._wait = _FIRST_WAIT
        self._file = _transcoded(file, request.mode)
        self._size = self._file.size
        limit = min(mtu - _HEADERS, largest_block)
        self._agreed = self._negotiate(limit)
        self._last = self._size // self.blksize + 1  # a short or empty block ends the transfer
        self._acked = 0
        self._sent = 0
        self._tries = 0
        self._patience = self._wait
        self._waiting_for_options = bool(self._agreed)
        self._chunk = b""
        self._chunk_at = 0
        self._began = 0.0

    # Calls from the adapter. ``wall`` is the time of day for events.

    def start(self, now: float, wall: float) -> list[bytes]:
        """The first packets: OACK if options were agreed on, else the first window."""
        self.deadline = now + self._patience
        self._began = now
        if self._waiting_for_options:
            return [encode(Oack(self._agreed))]
        return self._read_begins(wall)

    def receive(self, data: bytes, now: float, wall: float) -> list[bytes]:
        """A packet of the client's; rubbish is ignored. Nothing is raised."""
        if self.done:
            return []
        if len(data) >= 4 and data[:2] == b"\x00\x04":  # the hot path: ACK
            return self._ack((data[2] << 8) | data[3], now, wall)
        if len(data) < 4 or data[0]:
            return []
        if data[1] == Op.ERROR:
            packet = decode(data)
            assert isinstance(packet, Error)
            self._refused(packet, wall)
        elif data[1] in (Op.RRQ, Op.WRQ, Op.DATA, Op.OACK):
            return [encode(Error(Code.ILLEGAL, "this is a read transfer"))]
        return []

    def expire(self, now: float, wall: float) -> list[bytes]:
        """The timer fired: send again from the last ACK on, or give up."""
        if self.done or now < self.deadline:
            return []
        self._tries += 1
        final = self._sent == self._last and not self._waiting_for_options
        if final and self._tries > _LAST_TRIES:
            self._finish(
                Kind.TFTP_DONE, wall, bytes=self._size, seconds=round(now - self._began, 3)
            )
            return []
        if self._tries > _TRIES:
            self._finish(Kind.TFTP_FAILED, wall, why=f"no answer after block {self._acked}")
            return []
        self._patience = min(self._patience * 2, max(_LONGEST_WAIT, self._wait))
        self.deadline = now + self._patience
        if self._waiting_for_options:
            return [encode(Oack(self._agreed))]
        self._sent = self._acked
        return self._window(wall)

    def abort(self, why: str, wall: float) -> None:
        """The client is gone (port unreachable, replaced): end as what it was, once."""
        if self.done:
            return
        if self._waiting_for_options:
            self._finish(Kind.TFTP_PROBE, wall)
        elif self._sent == self._last:
            self._finish(Kind.TFTP_DONE, wall, bytes=self._size)
        else:
            self._finish(Kind.TFTP_FAILED, wall, why=why)

    # Inside

    def _negotiate(self, limit: int) -> dict[str, str]:
        """What of the client's options is agreed to; only those that it asked for (RFC 2347)."""
        agreed: dict[str, str] = {}
        for name, text in self.request.options.items():
            value = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
            if value is None:
                continue
            if name == "blksize" and value >= 8:
                self.blksize = max(8, min(value, limit, MAX_BLKSIZE))
                agreed[name] = str(self.blksize)
            elif name == "tsize":
                agreed[name] = str(self._size)
            elif name == "timeout" and 1 <= value <= 255:
                self._wait = float(value)
                agreed[name] = text
            elif name == "windowsize" and value >= 1 and self.request.mode == "octet":
                self.windowsize = min(value, MAX_WINDOW)
                agreed[name] = str(self.windowsize)
        return agreed

    def _ack(self, wire: int, now: float, wall: float) -> list[bytes]:
        if self._waiting_for_options:
            if wire != 0:
                return []
            self._waiting_for_options = False
            self._progress(now)
            return self._read_begins(wall)
        step = (wire - self._acked) & 0xFFFF
        if step == 0 or self._acked + step > self._sent:
            return []  # a duplicate or a stale one: the timer's business
        self._acked += step
        if self._acked == self._last:
            self._finish(
                Kind.TFTP_DONE, wall, bytes=self._size, seconds=round(now - self._began, 3)
            )
            return []
        self._sent = self._acked  # less than a window: go back to it (RFC 7440 section 4)
        self._progress(now)
        return self._window(wall)

    def _progress(self, now: float) -> None:
        self._tries = 0
        self._patience = self._wait
        self.deadline = now + self._wait

    def _read_begins(self, wall: float) -> list[bytes]:
        self._event(Kind.TFTP_READ, wall, size=self._size)
        return self._window(wall)

    def _window(self, wall: float) -> list[bytes]:
        """The next blocks after the last sent one; [] if the file cannot be read any more."""
        size = self.blksize
        first = self._sent + 1
        self._sent = min(self._sent + self.windowsize, self._last)
        start = (first - 1) * size
        end = min(self._sent * size, self._size)
        chunk, at = self._chunk, self._chunk_at
        if start < at or end > at + len(chunk):
            try:
                chunk = self._file.read(
                    start, min(max(_READ_AHEAD, end - start), self._size - start)
                )
            except OSError as error:
                why = f"cannot read: {error.strerror}"
                return self._broken(why, "the file cannot be read", wall)
            if len(chunk) < end - start:
                why = "the file was changed meanwhile"
                return self._broken(why, why, wall)
            at = start
            self._chunk, self._chunk_at = chunk, at
        packets = []
        offset = start - at
        for block in range(first, self._sent + 1):
            packets.append(
                b"\x00\x03"
                + (block & 0xFFFF).to_bytes(2, "big")
                + chunk[offset : min(offset + size, self._size - at)]
            )
            offset += size
        return packets

    def _broken(self, why: str, said: str, wall: float) -> list[bytes]:
        self._finish(Kind.TFTP_FAILED, wall, why=why)
        return [encode(Error(Code.UNDEFINED, said))]

    def _refused(self, error: Error, wall: float) -> None:
        """The client aborts. After an OACK that is how firmware asks for the size: a probe."""
        before_data = self._acked == 0 and bool(self._agreed)
        if before_data and error.code in (Code.UNDEFINED, Code.OPTIONS):
            self._finish(Kind.TFTP_PROBE, wall)
        else:
            why = f"the client says: {shown(error.text)} (code {error.code})"
            self._finish(Kind.TFTP_FAILED, wall, why=why)

    def _event(self, kind: Kind, wall: float, **detail: object) -> None:
        about = {"ip": self.peer.ip, "file": shown(self.request.file), **detail}
        self.events.append(Event(kind, self.peer.mac, wall, about))

    def _finish(self, kind: Kind, wall: float, **detail: object) -> None:
        self.done = True
        self._event(kind, wall, **detail)
        self._file.close()
        self._chunk = b""
