"""What is agreed with one client about one file, and what its transfer means. Sans-IO.

RFC 2347 (options), 2348 (blksize), 2349 (timeout, tsize), 7440 (windowsize). The conversation
itself, packet by packet, is ``aoe_fast.transfer``: this says what it is given to send, and turns
its progress and its end into events.
"""

import os
from dataclasses import dataclass
from typing import Protocol

from aoe_fast.transfer import Transfer
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.tftp.codec import Code, Oack, Request, TftpError, encode

MAX_WINDOW = 64
MAX_BLKSIZE = 65464  # RFC 2348
_DEFAULT_BLKSIZE = 512
_HEADERS = 32  # IPv4 20, UDP 8, TFTP 4
_FIRST_WAIT = 1.0
_NETASCII_LIMIT = 1 << 20


class File(Protocol):
    """Something to send: its size and bytes at an offset; ``close`` twice is fine.

    ``source`` is what a transfer takes: a descriptor of a regular file, or the bytes.
    """

    @property
    def size(self) -> int: ...

    @property
    def source(self) -> int | bytes: ...

    def read(self, offset: int, count: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, for the events: address text, and the MAC if it is known."""

    ip: str
    mac: Mac | None = None


class Session:
    """One client and ``file``, which it owns and closes at the end.

    ``transfer`` is to be driven by a mover; ``news`` gives the events of what it did meanwhile and
    ``done`` is true after the last. ``largest_block`` is a clamp for this client; blocks always fit
    the MTU. ``asks``: see ``Transfer``.
    TftpError from the constructor if the request cannot be served; ``file`` is closed then.
    """

    def __init__(
        self,
        request: Request,
        file: File,
        peer: Peer,
        *,
        mtu: int = 1500,
        largest_block: int = MAX_BLKSIZE,
        asks: bool = False,
    ) -> None:
        self.request = request
        self.peer = peer
        self.done = False
        self.blksize = _DEFAULT_BLKSIZE
        self.windowsize = 1
        self._wait = _FIRST_WAIT
        self._file = _transcoded(file, request.mode)
        self._size = self._file.size
        self._agreed = self._negotiate(min(mtu - _HEADERS, largest_block))
        self._reading = False
        self._why = ""
        self.transfer = Transfer(
            self._file.source,
            self._size,
            blksize=self.blksize,
            windowsize=self.windowsize,
            wait=self._wait,
            opening=encode(Oack(self._agreed)) if self._agreed else b"",
            asks=asks,
        )

    def stopping(self, why: str) -> None:
        """The transfer is being stopped: the reason, should it be told as a failure."""
        self._why = why

    def news(self, wall: float) -> list[Event]:
        """What is new about the transfer, at ``wall`` (time of day)."""
        if self.done:
            return []
        events = []
        if self.transfer.opened and not self._reading:
            self._reading = True
            events.append(self._event(Kind.TFTP_READ, wall, size=self._size))
        if self.transfer.end:
            self.done = True
            kind, detail = self._end()
            events.append(self._event(kind, wall, **detail))
            self._file.close()
        return events

    def close(self) -> None:
        """It never began."""
        self.done = True
        self._file.close()

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

    def _end(self) -> tuple[Kind, dict[str, object]]:
        """How the transfer ended, as an event."""
        transfer = self.transfer
        failed = Kind.TFTP_FAILED
        match transfer.end:
            case "complete" | "unconfirmed":
                seconds = round(transfer.seconds, 3)
                return Kind.TFTP_DONE, {"bytes": self._size, "seconds": seconds}
            case "silent":
                return failed, {"why": f"no answer after block {transfer.acked}"}
            case "refused":
                # After an OACK that is how firmware asks for the size: a probe.
                early = transfer.acked == 0 and bool(self._agreed)
                if early and transfer.code in (Code.UNDEFINED, Code.OPTIONS):
                    return Kind.TFTP_PROBE, {}
                said = transfer.words.decode("utf-8", "surrogateescape")
                return failed, {"why": f"the client says: {shown(said)} (code {transfer.code})"}
            case "short":
                return failed, {"why": "the file was changed meanwhile"}
            case "unreadable":
                return failed, {"why": f"cannot read: {os.strerror(transfer.code)}"}
        # Gone or stopped: ended as what it was.
        if not transfer.opened:
            return Kind.TFTP_PROBE, {}
        if transfer.all_sent:
            return Kind.TFTP_DONE, {"bytes": self._size}
        if transfer.end == "gone":
            return failed, {"why": f"the client is gone: {os.strerror(transfer.code)}"}
        return failed, {"why": self._why or "stopped"}

    def _event(self, kind: Kind, wall: float, **detail: object) -> Event:
        about = {"ip": self.peer.ip, "file": shown(self.request.file), **detail}
        return Event(kind, self.peer.mac, wall, about)


def shown(text: str) -> str:
    """What a client sent, fit for a log, a database and a screen: printable and short."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


class Bytes:
    """A file whose content is in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    @property
    def source(self) -> int | bytes:
        return self._content

    def read(self, offset: int, count: int) -> bytes:
        return self._content[offset : offset + count]

    def close(self) -> None:
        pass


def _transcoded(file: File, mode: str) -> File:
    """``file`` as the mode sends it; it is closed where that fails."""
    if mode == "octet":
        return file
    try:
        if mode != "netascii":
            raise TftpError(f"mode {mode[:20]!r} is not served: use octet (binary)")
        if file.size > _NETASCII_LIMIT:
            raise TftpError("netascii is for small text files: use octet (binary)")
        text = file.read(0, file.size)
    except OSError as error:
        raise TftpError(f"cannot read: {error.strerror}", Code.UNDEFINED) from None
    finally:
        file.close()
    # RFC 764: a line ends with CR LF, a lone CR is followed by NUL.
    return Bytes(text.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n"))
