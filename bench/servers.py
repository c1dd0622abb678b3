"""The servers that are compared, each started in a namespace and pinned to one CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bench import native
from bench.serve import address
from pxed.errors import HostError
from pxed.lab.netns import Namespace

_MINE = sorted(os.sched_getaffinity(0))
CPU, GENERATOR_CPU = _MINE[0], _MINE[-1] if len(_MINE) < 2 else _MINE[1]
"""The server's CPU and the clients': the first two that we may use; the same one if that is all."""
ROOT = Path(__file__).parents[1]


class Served(Protocol):
    """A running server."""

    def pids(self) -> list[int]:
        """The processes whose CPU time is the server's."""

    def counters(self) -> dict[str, int]:
        """What it says of itself by now; ``spin_ns`` is CPU time spent looking for work."""

    def stop(self) -> None:
        """End it; stopping twice is fine."""


class Speaking:
    """A process that says "ready" and answers SIGUSR1 with a line of JSON."""

    def __init__(self, space: Namespace, argv: Sequence[str], told: str = "") -> None:
        pipe = subprocess.PIPE
        self._child = space.popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._child.stdin as words:
            words.write(told.encode())
        if self._line() != "ready":
            assert self._child.stderr is not None
            why = self._child.stderr.read().decode().strip()
            raise HostError(f"{argv[0]} does not start: {why}")

    def _line(self) -> str:
        assert self._child.stdout is not None
        return str(self._child.stdout.readline().decode().strip())

    def pids(self) -> list[int]:
        return [self._child.pid]

    def counters(self) -> dict[str, int]:
        self._child.send_signal(signal.SIGUSR1)
        found: dict[str, int] = json.loads(self._line())
        return found

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()
            self._child.wait(20)
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()


def start_ours(space: Namespace, images: Sequence[Path], clients: int, **options: Any) -> Served:
    """Our server, every option but the ones given at its default."""
    asked = {"exports": [str(path) for path in images], "clients": clients, "cpu": CPU, **options}
    return Speaking(space, [sys.executable, "-m", "bench.serve"], json.dumps(asked) + "\n")


def start_floor(space: Namespace, image: Path) -> Served:
    """The least loop that answers reads: see native/floor.c."""
    argv = ["taskset", "-c", str(CPU), str(native.program("floor")), f"image={image}"]
    return Speaking(space, argv)


class Vblades:
    """Debian's vblade, a process for each image."""

    def __init__(self, space: Namespace, images: Sequence[Path], flags: Sequence[str]) -> None:
        self._children = []
        for number, path in enumerate(images):
            shelf, slot = address(number)
            argv = ["taskset", "-c", str(CPU), "vblade", *flags, str(shelf), str(slot), "eth0"]
            self._children.append(space.popen([*argv, str(path)]))
        until = time.monotonic() + 30
        # One line for each packet socket, and a heading.
        while space.run(["cat", "/proc/net/packet"]).stdout.count("88a2") < len(images):
            if time.monotonic() > until or any(c.poll() is not None for c in self._children):
                raise HostError("vblade does not start: is it installed, and is this root?")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def counters(self) -> dict[str, int]:
        return {}

    def stop(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self._children:
            child.wait(20)


def start_vblade(
    space: Namespace, images: Sequence[Path], *, writable: bool = False, sync: bool = False
) -> Served:
    """vblade with a socket buffer that holds 1024 requests; at Debian's 48,000 bytes it drops."""
    flags = ["-b", "1024"] + ([] if writable else ["-r"]) + (["-s"] if sync else [])
    return Vblades(space, images, flags)


def alone() -> str:
    """Why this machine cannot keep server and clients apart, or nothing."""
    if CPU != GENERATOR_CPU:
        return ""
    return "only one CPU may be used: the clients would take the server's, and no figure would hold"


def ksoftirqd() -> list[int]:
    """The pid of the kernel thread that takes over the server CPU's softirq work, if any."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == f"ksoftirqd/{CPU}\n":
                return [int(path.parent.name)]
    return []
