"""The client of the control socket: what the CLI, the lab and the benches ask a server with.

Nothing but the standard library: a command that only asks starts in no time.
"""

import contextlib
import http.client
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pxed.errors import HostError, PxedError, UsageError

Json = dict[str, Any]
LOOK_UP = 0.5  # seconds


class _Waking(socket.socket):
    """A socket whose reader looks up now and then while it waits for ever.

    A signal that comes between Python's last look for one and the system call would be seen when
    that returns: a Ctrl-C then does nothing until the server has something to say.
    """

    def recv_into(self, *args: Any, **options: Any) -> int:
        if self.gettimeout() is None:
            poll = select.poll()
            poll.register(self, select.POLLIN)
            while not poll.poll(LOOK_UP * 1000):
                pass
        return super().recv_into(*args, **options)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = _Waking(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket_path))


class ControlClient:
    """Asks a running server; HostError when there is none, with what to do."""

    def __init__(self, path: Path, *, timeout: float | None = 30.0) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, what: str) -> Any:
        """The JSON answer of ``GET what``; UsageError or HostError with the server's words."""
        return self.ask("GET", what)

    def post(self, what: str, body: Json | None = None) -> Any:
        """The JSON answer of ``POST what``; errors as ``get``."""
        return self.ask("POST", what, body or {})

    def ask(self, method: str, what: str, body: Json | None = None) -> Any:
        """The JSON answer of any request."""
        with self._ask(method, what, body, self._timeout) as response:
            answer = json.loads(response.read())
            if response.status >= 400:
                raise _error(answer, response.status)
            return answer

    def follow(self, what: str, body: Json | None = None) -> Iterator[Json]:
        """The JSON lines of ``GET what`` (``POST`` with a body) as they come, until they end."""
        with self._ask("POST" if body is not None else "GET", what, body, None) as response:
            for line in response:
                said = json.loads(line)
                if response.status >= 400 or said.keys() == {"error", "status"}:
                    raise _error(said, said.get("status", response.status))
                yield said

    @contextlib.contextmanager
    def _ask(
        self, method: str, what: str, body: Json | None, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, timeout)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, what, data, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                yield response
        except PermissionError:
            raise HostError(f"{self.path}: no permission: run as root") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoServer(
                f"{self.path}: no pxed is running here: start it with pxed serve, "
                "or name its state directory with --state-dir"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HostError(f"{self.path}: the server did not answer: {error!r}") from error
        finally:
            connection.close()


class NoServer(HostError):
    """Nobody listens on the control socket."""


def _error(answer: Any, status: int) -> PxedError:
    text = str(answer.get("error", f"the server answered {status}"))
    return UsageError(text) if status < 500 else HostError(text)
