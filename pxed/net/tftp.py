"""TFTP on one interface: requests on port 69, and a mover's thread that carries the files.

Each transfer has a connected socket (its TID), so the kernel sorts packets by client; from the
first packet to the last it belongs to ``aoe_fast.mover``. With ``single_port`` that socket is bound
to port 69 too: the kernel prefers the connected one, and a client behind NAT hears one port only.
"""

import asyncio
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from aoe_fast import AoeError
from aoe_fast.mover import Mover
from aoe_fast.transfer import Transfer
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net.link import Link
from pxed.net.udp import bind_udp, dropped
from pxed.tftp.codec import Code, Error, Request, TftpError, decode, encode
from pxed.tftp.session import MAX_BLKSIZE, File, Peer, Session, shown

_log = logging.getLogger("pxed.tftp")
PORT = 69
_BATCH = 64
_OF_ONE, _OF_A_ROUTER = 16, 256  # transfers of one address at once
_IP_PKTINFO = 8  # <bits/in.h>; not in Python 3.11's socket
_IN_USE = "(another TFTP server runs on this machine): stop it (systemctl stop tftpd-hpa)"
_COUNTED = {Kind.TFTP_DONE: "done", Kind.TFTP_PROBE: "probes", Kind.TFTP_FAILED: "failed"}
COUNTS = (
    "received", "started", *_COUNTED.values(), "missing", "refused", "displaced", "malformed",
    "faults",
)  # fmt: skip

OpenFile = Callable[[str, str], File]
"""(name, client's address) -> file; TftpError if there is none: ``Files.open``."""
_Client = tuple[str, int]


@dataclass(slots=True)
class _Line:
    """A client's port: its socket, and what is said on it now."""

    udp: socket.socket
    local: str
    session: Session


class TftpServer:
    """Serves what ``open_file`` finds to clients on ``link``; every event goes to ``emit``.

    ``mac_of`` finds a client's MAC from its address, for the events; ``largest_block`` clamps the
    block size of a client with that MAC; ``spin_us`` is the mover's. At most ``max_sessions``
    transfers run, ``max_per_client`` of one address (16; 256 with ``single_port``, where a router
    may stand for a room), and ``max_silent`` of clients that have not answered yet: beyond that the
    oldest silent one makes room. ``counters``: received, malformed, refused, started, done, probes,
    missing, failed, displaced, faults; ``mover`` has its own.
    """

    def __init__(
        self,
        link: Link,
        open_file: OpenFile,
        emit: Callable[[Event], None],
        *,
        mac_of: Callable[[str], Mac | None] = lambda ip: None,
        largest_block: Callable[[Mac | None], int] = lambda mac: MAX_BLKSIZE,
        single_port: bool = False,
        spin_us: int = 50,
        max_sessions: int = 2048,
        max_per_client: int | None = None,
        max_silent: int = 512,
    ) -> None:
        self.counters = Counter(dict.fromkeys(COUNTS, 0))
        self.mover = Mover(spin_us=spin_us)
        self._link = link
        self._open = open_file
        self._emit_to = emit
        self._mac_of = mac_of
        self._largest_block = largest_block
        self._single_port = single_port
        self._max_sessions = max_sessions
        self._max_per_client = max_per_client or (_OF_A_ROUTER if single_port else _OF_ONE)
        self._max_silent = max_silent
        self._udp: socket.socket | None = None
        self._lines: dict[_Client, _Line] = {}
        self._running: dict[Transfer, tuple[_Client, Session]] = {}
        self._silent: dict[Transfer, None] = {}  # of clients that have said nothing, oldest first
        self._leaving: set[Transfer] = set()  # told to end; the mover has not let go of them yet
        self._per_client: dict[str, dict[_Client, None]] = {}  # oldest first

    @property
    def sessions(self) -> int:
        """How many transfers run, without those that are being stopped."""
        return sum(map(len, self._per_client.values()))

    @property
    def dropped(self) -> int:
        """How many requests the kernel dropped, as more came than were read."""
        return dropped(self._udp)

    def loads(self, mac: Mac) -> bool:
        """Whether this machine is taking a file: it has acknowledged part of one that is not done.

        One that stopped doing so has none any more after its last repetition.
        """
        return any(
            session.peer.mac == mac and transfer not in self._silent
            for transfer, (_, session) in self._running.items()
        )

    def follow(self, link: Link) -> None:
        """The interface changed: new transfers fit its MTU."""
        self._link = link

    async def start(self) -> None:
        """Open port 69; HostError says why that cannot be, and what to do."""
        loop = asyncio.get_running_loop()
        self._udp = bind_udp(self._link, PORT, _IN_USE)
        self._udp.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        if self._single_port:  # after bind: another server on this port was still found
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.mover.start()
        except (OSError, AoeError) as error:
            self._udp.close()
            self._udp = None
            reason = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"TFTP cannot start: {reason}") from None
        loop.add_reader(self._udp.fileno(), self._readable)
        loop.add_reader(self.mover.fileno(), self._news)
        _log.debug("TFTP on %s", self._link.name)

    async def close(self) -> None:
        """Stop; transfers end as failed. Closing twice is fine."""
        if self._udp is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._udp.fileno())
        loop.remove_reader(self.mover.fileno())
        self._udp.close()
        self._udp = None
        for _, session in self._running.values():
            session.stopping("the server stops")
        self.mover.stop()
        self._news()

    # Requests

    def _readable(self) -> None:
        assert self._udp is not None
        for _ in range(_BATCH):
            try:
                data, ancillary, _, client = self._udp.recvmsg(2048, 128)
            except OSError:
                return
            self._received(data, _local_address(ancillary), client)

    def _received(self, data: bytes, local: str, client: _Client) -> None:
        self.counters["received"] += 1
        try:
            self._asked(data, local, client)
        except Exception as error:  # a fault of ours must not stop the service
            self.counters["faults"] += 1
            _log.error("cannot handle a packet from %s: %r", client[0], error)

    def _asked(self, data: bytes, local: str, client: _Client) -> None:
        try:
            request = decode(data)
        except TftpError as error:
            self.counters["malformed"] += 1
            _log.debug("malformed packet from %s: %s", client[0], error)
            return
        if not isinstance(request, Request):
            self.counters["malformed"] += 1
            return
        try:
            if request.write:
                raise TftpError("nothing can be written here", Code.ACCESS)
            if self._full(client):
                return
            session = self._session(request, client)
        except TftpError as error:
            self._refuse(request, client, error)
            return
        self._begin(session, local, client)

    def _full(self, client: _Client) -> bool:
        """No room for another client: silence, it asks again."""
        if client in self._lines:
            return False
        if len(self._lines) < self._max_sessions and len(self._leaving) < self._max_silent:
            return False
        self.counters["refused"] += 1
        return True

    def _session(self, request: Request, client: _Client) -> Session:
        mac = self._mac_of(client[0])
        return Session(
            request,
            self._open(request.file, client[0]),
            Peer(client[0], mac),
            mtu=self._link.mtu,
            largest_block=self._largest_block(mac),
            asks=self._single_port,
        )

    def _refuse(self, request: Request, client: _Client, error: TftpError) -> None:
        missing = error.code == Code.NOT_FOUND
        self.counters["missing" if missing else "refused"] += 1
        about: dict[str, object] = {"ip": client[0], "file": shown(request.file)}
        if not missing:
            about["why"] = str(error)
        kind = Kind.TFTP_MISSING if missing else Kind.TFTP_FAILED
        self._emit(Event(kind, self._mac_of(client[0]), time.time(), about))
        if self._udp is not None:
            with suppress(OSError):
                self._udp.sendto(encode(Error(error.code, str(error))), client)

    # Transfers

    def _begin(self, session: Session, local: str, client: _Client) -> None:
        of_client = self._per_client.setdefault(client[0], {})
        line = self._lines.get(client)
        if line is not None:
            # The same question again, the answer got lost: on the same socket, so that whichever
            # answer the client takes is from here.
            self._stop(line.session, "the client started over")
            line.session = session
        else:
            if len(of_client) >= self._max_per_client:
                oldest = next(iter(of_client))
                del of_client[oldest]
                replaced = "replaced by a newer request of the same client"
                self._stop(self._lines[oldest].session, replaced)
            try:
                udp = self._own_socket(local, client)
            except (OSError, HostError) as error:
                _log.warning("no socket for a transfer to %s: %s", client[0], error)
                self.counters["refused"] += 1
                session.close()
                return
            line = self._lines[client] = _Line(udp, local, session)
        of_client[client] = None
        if len(self._silent) >= self._max_silent:
            self.counters["displaced"] += 1
            silent = self._running[next(iter(self._silent))][1]
            self._stop(silent, "no answer, and others waited")
        self.counters["started"] += 1
        self._running[session.transfer] = (client, session)
        self._silent[session.transfer] = None
        self.mover.add(session.transfer, line.udp.fileno())

    def _stop(self, session: Session, why: str) -> None:
        session.stopping(why)
        self._silent.pop(session.transfer, None)
        self._leaving.add(session.transfer)
        self.mover.end(session.transfer)

    def _own_socket(self, local: str, client: _Client) -> socket.socket:
        """The transfer's TID: a port of its own at the address that the client asked."""
        single = self._single_port
        udp = bind_udp(self._link, PORT if single else 0, _IN_USE, local, shared=single, room=0)
        try:
            udp.connect(client)
            if single:
                self._return_strays(udp, local, client)
        except OSError:
            udp.close()
            raise
        return udp

    def _return_strays(self, udp: socket.socket, local: str, client: _Client) -> None:
        """Between bind and connect this socket took what was for port 69: others' requests."""
        strays = []
        with suppress(BlockingIOError):
            while True:
                data, source = udp.recvfrom(2048)
                if source != client:
                    strays.append((data, local, source))
        for stray in strays:
            asyncio.get_running_loop().call_soon(self._received, *stray)

    def _news(self) -> None:
        """The mover tells."""
        now = time.time()
        for transfer in self.mover.news():
            found = self._running.get(transfer)
            if found is None:
                continue
            client, session = found
            if transfer.answered:
                self._silent.pop(transfer, None)
            for event in session.news(now):
                self._emit(event)
            if session.done:
                self._ended(transfer, client, session)
            elif self._single_port and (asked := transfer.question()):
                self._received(asked, self._lines[client].local, client)

    def _ended(self, transfer: Transfer, client: _Client, session: Session) -> None:
        del self._running[transfer]
        self._silent.pop(transfer, None)
        self._leaving.discard(transfer)
        line = self._lines.get(client)
        if line is None or line.session is not session:
            return  # the client started over, and that may have ended by now
        del self._lines[client]
        line.udp.close()
        of_client = self._per_client.get(client[0], {})
        of_client.pop(client, None)
        if not of_client:
            self._per_client.pop(client[0], None)

    def _emit(self, event: Event) -> None:
        """Count, log and pass an event on."""
        name = _COUNTED.get(event.kind)
        if name is not None:
            self.counters[name] += 1
        loud = event.kind in (Kind.TFTP_DONE, Kind.TFTP_FAILED)
        level = logging.INFO if loud else logging.DEBUG
        if _log.isEnabledFor(level):
            detail = " ".join(f"{key}={value}" for key, value in event.detail.items())
            _log.log(level, "%s %s %s", event.mac or "-", event.kind, detail)
        try:
            self._emit_to(event)
        except Exception as error:  # a fault in the listener must not stop the service
            self.counters["faults"] += 1
            _log.error("event %s of %s: %r", event.kind, event.mac, error)


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> str:
    """The address of ours that the packet came to; any of ours if the kernel does not say."""
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(value) >= 12:
            return socket.inet_ntoa(struct.unpack_from("I4s4s", value)[1])
    return ""
