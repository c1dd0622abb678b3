"""TFTP on one interface: a listener on port 69 and a socket for each transfer (its TID).

A connected socket for each transfer lets the kernel sort packets by client; one lazy timer for each
follows its deadline, so that an ACK costs one receive and one send.
"""

import asyncio
import errno
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from aoe_fast.buffers import widen
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net.link import Link
from pxed.net.udp import bind_udp
from pxed.tftp.codec import Code, Error, Request, TftpError, decode, encode
from pxed.tftp.session import MAX_BLKSIZE, File, Peer, Session, shown

_log = logging.getLogger("pxed.tftp")
PORT = 69
_BATCH = 64
_SEND_BUFFER = 1 << 20
_IP_PKTINFO = 8  # <bits/in.h>; not in Python 3.11's socket
_UDP_SEGMENT = 103  # <linux/udp.h>
_MAX_SEGMENTS = 64
_MAX_DATAGRAM = 65507
_IN_USE = "(another TFTP server runs on this machine): stop it (systemctl stop tftpd-hpa)"

OpenFile = Callable[[str, str], File]
"""(name, client's address) -> file; TftpError if there is none: ``Files.open``."""


class TftpServer:
    """Serves what ``open_file`` finds to clients on ``link``; every event goes to ``emit``.

    ``mac_of`` finds a client's MAC from its address, for the events. ``largest_block`` clamps the
    block size of every client. ``counters``: received, malformed, refused, started, done, probes,
    missing, failed, send_errors.
    """

    def __init__(
        self,
        link: Link,
        open_file: OpenFile,
        emit: Callable[[Event], None],
        *,
        mac_of: Callable[[str], Mac | None] = lambda ip: None,
        largest_block: int = MAX_BLKSIZE,
        max_sessions: int = 2048,
        max_per_client: int = 16,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.segmenting = True
        self._link = link
        self._open = open_file
        self._emit_to = emit
        self._mac_of = mac_of
        self._largest_block = largest_block
        self._max_sessions = max_sessions
        self._max_per_client = max_per_client
        self._udp: socket.socket | None = None
        self._transfers: dict[tuple[str, int], _Transfer] = {}
        self._per_client: Counter[str] = Counter()

    @property
    def sessions(self) -> int:
        """How many transfers run."""
        return len(self._transfers)

    async def start(self) -> None:
        """Open port 69; HostError says why that cannot be, and what to do."""
        self._udp = bind_udp(self._link, PORT, _IN_USE)
        self._udp.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        asyncio.get_running_loop().add_reader(self._udp.fileno(), self._readable)
        _log.debug("TFTP on %s", self._link.name)

    async def close(self) -> None:
        """Stop; transfers end as failed. Closing twice is fine."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp.fileno())
            self._udp.close()
            self._udp = None
        for transfer in list(self._transfers.values()):
            transfer.stop("the server stops")

    # The listener

    def _readable(self) -> None:
        assert self._udp is not None
        for _ in range(_BATCH):
            try:
                data, ancillary, _, client = self._udp.recvmsg(2048, 128)
            except OSError:
                return
            self.counters["received"] += 1
            try:
                self._asked(data, _local_address(ancillary), client)
            except Exception as error:  # a fault of ours must not stop the service
                self.counters["faults"] += 1
                _log.error("cannot handle a packet from %s: %r", client[0], error)

    def _asked(self, data: bytes, local: str, client: tuple[str, int]) -> None:
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
            session = self._session(request, client)
        except TftpError as error:
            self._refuse(request, client, error)
            return
        self._begin(session, local, client)

    def _session(self, request: Request, client: tuple[str, int]) -> Session:
        file = self._open(request.file, client[0])
        try:
            return Session(
                request,
                file,
                Peer(client[0], self._mac_of(client[0])),
                mtu=self._link.mtu,
                largest_block=self._largest_block,
            )
        except TftpError:
            file.close()
            raise

    def _refuse(self, request: Request, client: tuple[str, int], error: TftpError) -> None:
        missing = error.code == Code.NOT_FOUND
        self.counters["missing" if missing else "refused"] += 1
        about: dict[str, object] = {"ip": client[0], "file": shown(request.file)}
        if not missing:
            about["why"] = str(error)
        kind = Kind.TFTP_MISSING if missing else Kind.TFTP_FAILED
        self.emit(Event(kind, self._mac_of(client[0]), time.time(), about))
        if self._udp is not None:
            with suppress(OSError):
                self._udp.sendto(encode(Error(error.code, str(error))), client)

    def _begin(self, session: Session, local: str, client: tuple[str, int]) -> None:
        running = self._transfers.get(client)
        if running is not None:  # the same question again: the answer got lost
            running.restart(session)
            return
        ip = client[0]
        if self._per_client[ip] >= self._max_per_client:
            oldest = next(t for key, t in self._transfers.items() if key[0] == ip)
            oldest.stop("replaced by a newer request of the same client")
        if len(self._transfers) >= self._max_sessions:
            session.abort("too many transfers at once", time.time())
            self.counters["refused"] += 1
            return  # silence: the client asks again
        try:
            transfer = _Transfer(self, session, self._own_socket(local, client), client)
        except (OSError, HostError) as error:
            _log.warning("no socket for a transfer to %s: %s", ip, error)
            session.abort("no socket", time.time())
            self.counters["refused"] += 1
            return
        self._transfers[client] = transfer
        self._per_client[ip] += 1
        self.counters["started"] += 1
        transfer.begin()

    def _own_socket(self, local: str, client: tuple[str, int]) -> socket.socket:
        """The transfer's TID: a port of its own at the address that the client asked."""
        udp = bind_udp(self._link, 0, "", local)
        try:
            widen(udp, socket.SO_SNDBUF, _SEND_BUFFER)
            udp.connect(client)
        except OSError:
            udp.close()
            raise
        return udp

    # For transfers

    def emit(self, event: Event) -> None:
        """Count, log and pass an event on."""
        name = {
            Kind.TFTP_DONE: "done",
            Kind.TFTP_PROBE: "probes",
            Kind.TFTP_FAILED: "failed",
        }.get(event.kind)
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

    def ended(self, client: tuple[str, int]) -> None:
        """A transfer gave its socket up."""
        if self._transfers.pop(client, None) is not None:
            self._per_client[client[0]] -= 1
            if self._per_client[client[0]] <= 0:
                del self._per_client[client[0]]


class _Transfer:
    """One session on its socket."""

    def __init__(
        self, server: TftpServer, session: Session, udp: socket.socket, client: tuple[str, int]
    ) -> None:
        self._server = server
        self._session = session
        self._udp = udp
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._backlog: list[bytes] = []
        self._loop.add_reader(udp.fileno(), self._readable)

    def begin(self) -> None:
        now = time.monotonic()
        self._after(self._session.start(now, time.time()))
        if not self._session.done:
            self._timer = self._loop.call_later(self._session.deadline - now, self._timeout)

    def restart(self, session: Session) -> None:
        """The client starts over: same socket, so that whichever answer it takes is from here."""
        self._session.abort("the client started over", time.time())
        self._flush_events()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_backlog()
        self._session = session
        self.begin()

    def stop(self, why: str) -> None:
        self._session.abort(why, time.time())
        self._after([])

    def _readable(self) -> None:
        try:
            data = self._udp.recv(2048)
        except BlockingIOError:
            return
        except OSError as error:  # ICMP: the client closed its port
            self._session.abort(f"the client is gone: {error.strerror}", time.time())
            self._after([])
            return
        self._after(self._session.receive(data, time.monotonic(), time.time()))

    def _timeout(self) -> None:
        self._timer = None
        now = time.monotonic()
        if now >= self._session.deadline:
            self._after(self._session.expire(now, time.time()))
        if not self._session.done:
            wait = max(self._session.deadline - now, 0.01)
            self._timer = self._loop.call_later(wait, self._timeout)

    def _after(self, packets: list[bytes]) -> None:
        """Send, tell, and end if that was all."""
        if packets:
            if self._backlog:  # what was still to be sent is out of date now
                self._drop_backlog()
            self._send(packets)
        if self._session.events:
            self._flush_events()
        if self._session.done:
            self._end()

    def _send(self, packets: list[bytes]) -> None:
        at = 0
        try:
            if len(packets) > 1 and self._server.segmenting:
                for batch in _batches(packets):
                    self._send_batch(batch)
                    at += len(batch)
            for packet in packets[at:]:
                self._udp.send(packet)
                at += 1
        except BlockingIOError:
            self._backlog = packets[at:]
            self._loop.add_writer(self._udp.fileno(), self._writable)
        except ConnectionRefusedError as error:
            self._session.abort(f"the client is gone: {error.strerror}", time.time())
        except OSError:  # link down, out of buffers: the timer sends it again
            self._server.counters["send_errors"] += 1

    def _send_batch(self, batch: list[bytes]) -> None:
        """A window in one call: the kernel cuts it into datagrams (UDP_SEGMENT)."""
        size = struct.pack("=H", len(batch[0]))
        try:
            self._udp.sendmsg(batch, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)])
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.EMSGSIZE):
                raise
            # This kernel or interface cannot: one call for each from now on.
            self._server.segmenting = False
            for packet in batch:
                self._udp.send(packet)

    def _writable(self) -> None:
        packets = self._backlog
        self._drop_backlog()
        self._after(packets)

    def _drop_backlog(self) -> None:
        if self._backlog:
            self._backlog = []
            self._loop.remove_writer(self._udp.fileno())

    def _flush_events(self) -> None:
        events, self._session.events = self._session.events, []
        for event in events:
            self._server.emit(event)

    def _end(self) -> None:
        if self._udp.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_backlog()
        self._loop.remove_reader(self._udp.fileno())
        self._udp.close()
        self._server.ended(self._client)


def _batches(packets: list[bytes]) -> Iterator[list[bytes]]:
    """Parts that UDP_SEGMENT takes: 64 datagrams, 64 KiB, all but the last of one size."""
    count = max(1, min(_MAX_SEGMENTS, _MAX_DATAGRAM // len(packets[0])))
    for at in range(0, len(packets), count):
        yield packets[at : at + count]


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> str:
    """The address of ours that the packet came to; any of ours if the kernel does not say."""
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(value) >= 12:
            return socket.inet_ntoa(struct.unpack_from("I4s4s", value)[1])
    return ""
