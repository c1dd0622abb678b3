"""The control socket: HTTP and JSON on a unix socket.

Everything a person or a page can ask goes through here; ``pxed.openapi`` describes all of it, and
the server hands that out as ``GET /v1/openapi.json``.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from pxed.ask import ControlClient
from pxed.errors import HostError, PxedError, UsageError
from pxed.eventlog import EventLog
from pxed.mac import parse_mac
from pxed.net.http import in_one_line
from pxed.openapi import DOCUMENT
from pxed.threads import Pool

log = logging.getLogger("pxed.control")

__all__ = ["Call", "Control", "ControlClient", "Json", "NotThere", "Route", "Stream"]

Json = dict[str, Any]

_requests = logging.getLogger("pxed.control.requests")
_requests.addFilter(in_one_line)

_LINES_AT_ONCE = 50  # of a stream, in one turn of the loop


class Served(Protocol):
    """What the control socket shows; the application is one."""

    @property
    def events(self) -> EventLog: ...

    def status(self) -> Json: ...

    def client_list(self) -> list[Json]: ...

    def client_show(self, mac: str) -> Json | None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a route: what stood in its path, its query and its JSON body."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Json


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a method and a path. PxedErrors become JSON with one line."""

    method: str
    path: str
    answer: Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Stream:
    """A route that answers with JSON lines as they come; an error is the last of them."""

    method: str
    path: str
    lines: Callable[[Call], AsyncGenerator[Json, None]]


class Control:
    """Serves ``served`` and ``routes`` on the unix socket ``path``, for root and ``group``."""

    def __init__(
        self,
        served: Served,
        path: Path,
        routes: Sequence[Route | Stream] = (),
        group: str | None = None,
    ) -> None:
        self._served = served
        self._path = path
        self._group = group
        self._runner: web.AppRunner | None = None
        self._listers: Pool | None = None
        self.routes: tuple[Route | Stream, ...] = (
            Route("GET", "/v1/status", self._status),
            Route("GET", "/v1/clients", self._clients),
            Route("GET", "/v1/clients/{mac}", self._client),
            Stream("GET", "/v1/events", self._events),
            Route("GET", "/v1/openapi.json", self._openapi),
            *routes,
        )

    async def start(self) -> None:
        """Listen; HostError if the path is not usable. What a killed server left is replaced."""
        self._listers = Pool(2, "listing")
        app = web.Application(middlewares=[_errors_as_json])
        for route in self.routes:
            app.router.add_route(route.method, route.path, _handler(route))
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0, logger=_requests,
            handler_cancellation=True,
        )  # fmt: skip
        await runner.setup()
        self._runner = runner
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # It appears under its name when it listens and has its rights: whoever sees it can ask.
        new = self._path.with_name(".new")
        try:
            new.unlink(missing_ok=True)
            listener.bind(str(new))
            self._give_to_group(new)
            new.chmod(0o660)
            listener.listen(64)
            new.rename(self._path)
        except UsageError:
            listener.close()
            new.unlink(missing_ok=True)
            raise
        except OSError as error:
            listener.close()
            with contextlib.suppress(OSError):
                new.unlink()
            raise HostError(f"{self._path}: cannot listen: {error.strerror or error}") from error
        await web.SockSite(runner, listener).start()

    def _give_to_group(self, path: Path) -> None:
        if self._group is None:
            return
        about = f"[control] group = {self._group!r}"
        try:
            shutil.chown(path, group=self._group)
        except LookupError:
            raise UsageError(f"{about}: there is no such group") from None
        except PermissionError:
            raise UsageError(
                f"{about}: the server's user is not in it: SupplementaryGroups={self._group} "
                "in systemctl edit pxed"
            ) from None

    async def close(self) -> None:
        """Stop listening and remove the socket; closing twice is fine."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            # Gone already, or the disk below takes no change any more.
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._listers is not None:
            self._listers.shutdown()

    async def _status(self, _call: Call) -> Json:
        return self._served.status()

    async def _clients(self, _call: Call) -> web.Response:
        def work() -> str:
            # One by one: the encoder would hold up every other thread for all of them.
            return f"[{','.join([json.dumps(each) for each in self._served.client_list()])}]"

        text = await asyncio.get_running_loop().run_in_executor(self._listers, work)
        return web.json_response(text=text)

    async def _client(self, call: Call) -> Json:
        try:
            mac = parse_mac(call.path["mac"])
        except ValueError as error:
            raise UsageError(str(error)) from None
        shown = self._served.client_show(mac)
        if shown is None:
            raise NotThere(f"no client {mac} was ever seen")
        return shown

    async def _events(self, call: Call) -> AsyncGenerator[Json, None]:
        try:
            since = float(call.query["since"]) if "since" in call.query else None
        except ValueError:
            raise UsageError(f"since={call.query['since']}: must be a number of seconds") from None
        async for entry in self._served.events.read(
            follow=call.query.get("follow") == "1", since=since
        ):
            yield entry

    async def _openapi(self, _call: Call) -> Json:
        return DOCUMENT


class NotThere(UsageError):
    """What was asked for does not exist."""


def _status_of(error: PxedError) -> int:
    if isinstance(error, NotThere):
        return 404
    return 400 if isinstance(error, UsageError) else 500


def _handler(route: Route | Stream) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    going_on: set[asyncio.Future[Any]] = set()

    async def once(request: web.Request) -> web.StreamResponse:
        assert isinstance(route, Route)
        # Whoever hangs up stops a stream; what changes something is done to its end.
        work = asyncio.ensure_future(route.answer(await _call(request)))
        going_on.add(work)
        work.add_done_callback(going_on.discard)
        answer = await asyncio.shield(work)
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def stream(request: web.Request) -> web.StreamResponse:
        assert isinstance(route, Stream)
        call = await _call(request)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with contextlib.aclosing(route.lines(call)) as lines:
            with contextlib.suppress(ConnectionResetError, asyncio.CancelledError):
                try:
                    count = 0
                    async for line in lines:
                        if not response.prepared:
                            await response.prepare(request)
                        await response.write(json.dumps(line).encode() + b"\n")
                        count += 1
                        if count % _LINES_AT_ONCE == 0:
                            await asyncio.sleep(0)
                except PxedError as error:
                    if not response.prepared:
                        raise
                    said = {"error": str(error), "status": _status_of(error)}
                    await response.write(json.dumps(said).encode() + b"\n")
                if not response.prepared:
                    await response.prepare(request)
                await response.write_eof()
        return response

    return once if isinstance(route, Route) else stream


async def _call(request: web.Request) -> Call:
    body: Any = {}
    if request.can_read_body:
        try:
            body = json.loads(await request.read())
        except ValueError:
            raise UsageError("the body of the request is not JSON") from None
    if not isinstance(body, dict):
        raise UsageError("the body of the request must be a JSON object")
    return Call(request.match_info, request.query, body)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except PxedError as error:
        return web.json_response({"error": str(error)}, status=_status_of(error))
    except web.HTTPException as error:
        text = f"{request.method} {request.path}: {error.reason}"
        return web.json_response({"error": text}, status=error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return web.json_response({"error": "the server failed: see its log"}, status=500)
