"""HTTP on one interface: aiohttp around ``pxed.http.site``; ranges and ETag are aiohttp's.

It has a thread and a plain asyncio loop of its own: uvloop has no sendfile, and a room that loads
its kernel must not hold up the loop that answers DHCP. What the site finds is looked up there;
events, and whose address it was, are the server's loop's.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.http.fatdisk import FatDisk
from pxed.http.site import Site
from pxed.mac import Mac
from pxed.net.link import Link
from pxed.net.thread import LoopThread
from pxed.threads import Pool

_log = logging.getLogger("pxed.http")
_BACKLOG = 1024  # a room that is switched on at once
_CHUNK = 1 << 20
_READERS = 6  # threads that wait for the disk
_READ = os.O_RDONLY | os.O_CLOEXEC
_SHUTDOWN = 1.0
_AT_ONCE = 4096
_PER_CLIENT = 16  # firmware has one, iPXE one, a browser six
_SILENT = 30.0  # seconds until a connection without a request is closed
_TCP_USER_TIMEOUT = 18  # <linux/tcp.h>
_UNACKNOWLEDGED = 30_000  # ms that a machine may be gone in the middle of a transfer


def in_one_line(record: logging.LogRecord) -> bool:
    """What aiohttp says of a request: no traceback, and nothing where the client is to blame."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        if isinstance(error, (HttpProcessingError, ConnectionError)):
            _log.debug("%s: %s", type(error).__name__, " ".join(str(error).split())[:200])
            return False
        record.msg, record.args = f"{record.getMessage()}: {error!r}", ()
        record.exc_info = None
    return True


COUNTS = ("requests", "done", "failed", "missing", "refused", "too_many", "bytes", "faults")
_requests = logging.getLogger("pxed.http.requests")
_requests.addFilter(in_one_line)


class HttpServer:
    """Serves ``site`` on ``port`` of ``link``; every event goes to ``emit``.

    ``mac_of`` gives a client's MAC from its address. It and ``emit`` are called on the loop that
    ``start`` was called on; ``site`` and ``base``, the server's own URL at the time of the call, on
    the service's own, and must not care. ``counters``: requests, done, missing, failed, refused,
    bytes, too_many (connections).
    """

    def __init__(
        self,
        link: Link,
        port: int,
        site: Site,
        emit: Callable[[Event], None],
        *,
        base: Callable[[], str],
        mac_of: Callable[[str], Mac | None] = lambda ip: None,
    ) -> None:
        self.counters = Counter(dict.fromkeys(COUNTS, 0))
        self._link = link
        self._port = port
        self._site = site
        self._emit = emit
        self._base = base
        self._mac_of = mac_of
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._thread: LoopThread | None = None
        self._owner: asyncio.AbstractEventLoop | None = None
        self._taking: dict[int, Mac | None] = {}  # by request; the server's loop's

    async def start(self) -> None:
        """Listen; HostError says why that cannot be, and what to do."""
        listener = self._listen()
        self._owner = asyncio.get_running_loop()
        try:
            self._thread = LoopThread(new_loop=asyncio.SelectorEventLoop, name="pxed-http")
            await self._thread.run(self._start(listener))
        except BaseException:
            listener.close()
            await self.close()
            raise
        _log.debug("HTTP on %s, port %d", self._link.name, self._port)

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        await thread.run(self._stop())
        thread.close()

    def loads(self, mac: Mac) -> bool:
        """Whether this machine is taking a file; TCP ends what goes on in no one's name."""
        return mac in self._taking.values()

    # In the thread

    async def _start(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().set_default_executor(Pool(_READERS, "http-file"))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(self._begins)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN,
            keepalive_timeout=_SILENT, logger=_requests,
        )  # fmt: skip
        await runner.setup()
        self._runner = runner
        assert runner.server is not None
        door = _Door(runner.server, self.counters)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(door, sock=listener, backlog=_BACKLOG)

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await asyncio.get_running_loop().shutdown_default_executor()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            name = self._link.name.encode()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            listener.bind(("", self._port))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            what = f"port {self._port}/tcp on {self._link.name}"
            if error.errno == errno.EADDRINUSE:
                raise HostError(
                    f"{what} is in use (another web server runs on this machine): stop it, "
                    "or set [http] port"
                ) from None
            raise HostError(f"{what}: {error.strerror}") from None
        return listener

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.counters["requests"] += 1
        ip = request.remote or ""
        about: dict[str, object] = {"ip": ip, "file": _shown(request.path)}
        if request.method not in ("GET", "HEAD"):
            self.counters["refused"] += 1
            return web.Response(status=405, text="nothing can be written here\n")
        found = self._site.find(request.path, self._base())
        if found is None:
            self.counters["missing"] += 1
            self._tell(Kind.HTTP_MISSING, ip, about)
            return web.Response(status=404, text="no such file\n")
        response: web.StreamResponse
        if found.disk is not None:
            response = _Disk(found.disk)
        elif found.path is None:
            response = web.Response(body=found.content, content_type="text/plain")
        else:
            response = _Whole(found.path, chunk_size=_CHUNK)
            response.content_type = "application/octet-stream"
            if found.path.suffix == ".efi":  # EDK2 looks at the type, or else at the name
                response.content_type = "application/efi"
        began = time.monotonic()
        try:
            await response.prepare(request)
            if isinstance(response, _Disk) and request.method == "GET":
                await response.send()
            await response.write_eof()
            if request.method == "GET" and response.status in (200, 206):
                self.counters["done"] += 1
                size = int(response.headers.get("Content-Length", 0))
                self.counters["bytes"] += size
                seconds = round(time.monotonic() - began, 3)
                self._tell(Kind.HTTP_DONE, ip, {**about, "bytes": size, "seconds": seconds})
        except (ConnectionError, asyncio.CancelledError) as error:
            self.counters["failed"] += 1
            why = f"the client hung up: {error!r}"
            if isinstance(error, _Changed):
                why = str(error)
            self._tell(Kind.HTTP_FAILED, ip, {**about, "why": why})
            raise
        finally:
            self._call(self._taking.pop, id(request), None)
        return response

    async def _begins(self, request: web.Request, response: web.StreamResponse) -> None:
        """Its header goes out; of what is there at once nothing is told but its end."""
        file = isinstance(response, (_Whole, _Disk)) and response.status in (200, 206)
        if request.method == "GET" and file:
            ip = request.remote or ""
            about: dict[str, object] = {"ip": ip, "file": _shown(request.path)}
            self._tell(Kind.HTTP_READ, ip, {**about, "size": response.content_length}, id(request))

    def _tell(
        self, kind: Kind, ip: str, detail: dict[str, object], begun: int | None = None
    ) -> None:
        self._call(self._told, kind, ip, time.time(), detail, begun)

    def _call(self, what: Callable[..., object], *args: Any) -> None:
        """On the server's loop, in the order of the calls."""
        assert self._owner is not None
        with contextlib.suppress(RuntimeError):  # it is closed: nobody is left to be told
            self._owner.call_soon_threadsafe(what, *args)

    # On the server's loop

    def _told(
        self, kind: Kind, ip: str, now: float, detail: dict[str, object],
        begun: int | None,
    ) -> None:  # fmt: skip
        try:
            mac = self._mac_of(ip)
            if begun is not None:
                self._taking[begun] = mac
            self._emit(Event(kind, mac, now, detail))
        except Exception as error:  # a fault in the listener must not stop the service
            self.counters["faults"] += 1
            _log.error("event %s: %r", kind, error)


class _Whole(web.FileResponse):
    """A file that was sent already when the handler returns; aiohttp would begin it once more."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self.prepared:
            return await web.StreamResponse.prepare(self, request)
        return await super().prepare(request)


class _Changed(ConnectionError):
    """A file of a disk is not what it was when the disk's size was said."""


class _Disk(web.StreamResponse):
    """A disk that is made while it is sent; its length is known, parts of it cannot be asked for.

    The type is what UEFI 2.10 section 24.7.3 wants; EDK2 takes the name's ``.img`` as well.
    """

    def __init__(self, disk: FatDisk) -> None:
        super().__init__(headers={"Accept-Ranges": "none"})
        self.content_type = "application/vnd.efi-img"
        self.content_length = disk.size
        self._disk = disk

    async def send(self) -> None:
        """All of it; ``_Changed`` if a file has another size by now."""
        loop = asyncio.get_running_loop()
        for piece in self._disk.pieces():
            if piece.path is None:
                await self.write(piece.content)
                await self._zeros(piece.size - len(piece.content))
                continue
            try:
                fd = await loop.run_in_executor(None, os.open, piece.path, _READ)
            except OSError as error:
                raise _Changed(f"{piece.path}: {error.strerror}") from None
            try:
                left = piece.size
                while left:
                    data = await loop.run_in_executor(None, os.read, fd, min(left, _CHUNK))
                    if not data:
                        raise _Changed(f"{piece.path} has become shorter")
                    left -= len(data)
                    await self.write(data)
            finally:
                os.close(fd)

    async def _zeros(self, count: int) -> None:
        while count:
            some = min(count, _CHUNK)
            await self.write(bytes(some))
            count -= some


class _Door:
    """Lets connections in: so many at once of one client, and of all.

    aiohttp ends those that say nothing, or half of something, after its keep-alive time; TCP ends
    those whose machine was switched off in the middle of a transfer.
    """

    def __init__(self, server: web.Server, counters: Counter[str]) -> None:
        self._server = server
        self._counters = counters
        self._open: dict[str, list[asyncio.BaseTransport]] = {}

    def __call__(self) -> asyncio.Protocol:
        return _Visitor(self)

    def enter(self, transport: asyncio.BaseTransport) -> asyncio.Protocol | None:
        """Who serves this connection; None: it has to go."""
        ip = (transport.get_extra_info("peername") or ("",))[0]
        mine = [each for each in self._open.pop(ip, []) if not each.is_closing()]
        if len(mine) < _PER_CLIENT and self._room():
            self._open[ip] = [*mine, transport]
            return self._server()
        self._open[ip] = mine
        self._counters["too_many"] += 1
        return None

    def _room(self) -> bool:
        if len(self._open) * _PER_CLIENT < _AT_ONCE:
            return True
        left = {ip: [t for t in have if not t.is_closing()] for ip, have in self._open.items()}
        self._open = {ip: have for ip, have in left.items() if have}
        return sum(map(len, self._open.values())) < _AT_ONCE


class _Visitor(asyncio.Protocol):
    """A connection at the door."""

    def __init__(self, door: _Door) -> None:
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp_transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        protocol = self._door.enter(transport)
        if protocol is None:
            tcp_transport.abort()
            return
        tcp = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            tcp.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
        tcp_transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _shown(path: str) -> str:
    """What a client named, safe on a terminal."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in path)[:200]
