"""The control socket: HTTP and JSON on a unix socket, and the small client that the CLI uses.

Everything a person or a page can ask goes through here. Version 1 of the interface:

- ``GET /v1/status``: the server, its interface, DHCP and AoE counters
- ``GET /v1/clients``: all clients; ``GET /v1/clients/MAC``: one
- ``GET /v1/events[?follow=1]``: the event log as JSON lines; with follow it goes on
"""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from pxed.errors import HostError, UsageError
from pxed.eventlog import EventLog
from pxed.mac import parse_mac

Json = dict[str, Any]


class Served(Protocol):
    """What the control socket shows; the application is one."""

    events: EventLog

    def status(self) -> Json: ...

    def client_list(self) -> list[Json]: ...

    def client_show(self, mac: str) -> Json | None: ...


class Control:
    """Serves ``served`` on the unix socket ``path``, readable by root and the socket's group."""

    def __init__(self, served: Served, path: Path) -> None:
        self._served = served
        self._path = path
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; HostError if the path is not usable. What a killed server left is replaced."""
        app = web.Application()
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/clients", self._clients)
        app.router.add_get("/v1/clients/{mac}", self._client)
        app.router.add_get("/v1/events", self._events)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        # uvloop and asyncio differ in what they do with a stale socket file, so it goes first.
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o660)
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise HostError(f"{self._path}: cannot listen: {error.strerror or error}") from error
        await web.SockSite(runner, listener).start()

    async def close(self) -> None:
        """Stop listening and remove the socket; closing twice is fine."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._served.status())

    async def _clients(self, _request: web.Request) -> web.Response:
        return web.json_response(self._served.client_list())

    async def _client(self, request: web.Request) -> web.Response:
        try:
            mac = parse_mac(request.match_info["mac"])
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        shown = self._served.client_show(mac)
        if shown is None:
            return web.json_response({"error": f"no client {mac} was ever seen"}, status=404)
        return web.json_response(shown)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        follow = request.query.get("follow") == "1"
        with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
            async for entry in self._served.events.read(follow=follow):
                await response.write(json.dumps(entry).encode() + b"\n")
            await response.write_eof()
        return response


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


class ControlClient:
    """Asks a running server; HostError when there is none, with what to do."""

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, what: str) -> Any:
        """The JSON answer of ``GET what``; UsageError with the server's words for 4xx."""
        with self._ask(what, self._timeout) as response:
            body = json.loads(response.read())
            if response.status >= 400:
                raise UsageError(str(body.get("error", f"the server answered {response.status}")))
            return body

    def follow(self, what: str) -> Iterator[Json]:
        """The JSON lines of ``GET what``, as they come, until the server stops."""
        with self._ask(what, None) as response:
            for line in response:
                yield json.loads(line)

    @contextlib.contextmanager
    def _ask(self, what: str, timeout: float | None) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, timeout)
        try:
            connection.request("GET", what)
            with connection.getresponse() as response:
                yield response
        except PermissionError:
            raise HostError(f"{self.path}: no permission: run as root") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise HostError(
                f"{self.path}: no pxed is running here: start it with pxed serve, "
                "or name its state directory with --state-dir"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HostError(f"{self.path}: the server did not answer: {error!r}") from error
        finally:
            connection.close()
