"""The control socket of ``aoe-fast serve``: one line of JSON each way on a unix socket."""

import contextlib
import errno
import json
import os
import socket
import stat as file_modes
from collections.abc import Callable
from typing import Any

import click

_PATIENCE_S = 5  # with one who has connected, on a machine that is busy, and says nothing yet


def default_path(interface: str) -> str:
    """Where the server on ``interface`` listens unless it was told otherwise."""
    return f"/run/aoe-fast-{interface}.sock"


class Control:
    """A unix socket that answers every connection's one line with one line of JSON."""

    def __init__(self, path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.path = path
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._made: os.stat_result | None = None
        try:
            self._clear()
            old = os.umask(0o077)
            try:
                self._socket.bind(path)
            finally:
                os.umask(old)
            self._made = os.stat(path)
            self._socket.listen(8)
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _clear(self) -> None:
        """Remove a dead server's socket; OSError if the path is in use or something else."""
        try:
            if not file_modes.S_ISSOCK(os.lstat(self.path).st_mode):
                raise OSError(errno.EEXIST, "it exists and is no socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(1)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
            else:
                raise OSError(errno.EADDRINUSE, "another aoe-fast serve answers there")

    def fileno(self) -> int:
        return self._socket.fileno()

    def serve_one(self) -> None:
        """Answer one waiting connection; a client that misbehaves only loses its answer."""
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        with peer:
            peer.settimeout(_PATIENCE_S)
            try:
                line = b""
                while not line.endswith(b"\n") and len(line) < 1 << 16:
                    if not (more := peer.recv(4096)):
                        break
                    line += more
                request = json.loads(line)
                answer = self._answer(request if isinstance(request, dict) else {})
            except (ValueError, RecursionError):
                answer = {"error": "one line of JSON, please"}
            except OSError:
                return
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        """Remove the socket if it is still the one made here."""
        self._socket.close()
        if self._made is not None:
            with contextlib.suppress(OSError):
                now = os.lstat(self.path)
                if (now.st_dev, now.st_ino) == (self._made.st_dev, self._made.st_ino):
                    os.unlink(self.path)
            self._made = None


def ask(path: str, request: dict[str, Any], *, patience: float = 30) -> dict[str, Any]:
    """A running server's answer; ClickException (exit 1) if none runs there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(patience)
            peer.connect(path)
            peer.sendall(json.dumps(request).encode() + b"\n")
            with peer.makefile("rb") as file:
                answer = json.loads(file.readline())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no sensible answer"
        raise click.ClickException(
            f"{path}: {reason}: is `aoe-fast serve` running? (--control names its socket)"
        ) from None
    if not isinstance(answer, dict) or "error" in answer:
        raise click.ClickException(
            f"{path}: the server refuses: {answer['error'] if isinstance(answer, dict) else answer}"
        )
    return answer
