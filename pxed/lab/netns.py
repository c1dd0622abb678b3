"""Network namespaces that cannot outlive the program that made them.

A namespace here has no name under /run/netns: a holder process keeps it, and the kernel kills the
holder when its parent dies, however it dies. With the last process in it the namespace goes, and
with the namespace every veth, tap and bridge. So nothing is left even after kill -9.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pxed.errors import HostError

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40  # netdevice(7)
_CARRIER_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """``argv``, wrapped so that the kernel kills the process when the calling thread ends.

    Call it from the main thread: PR_SET_PDEATHSIG watches the thread that forked.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


class Namespace:
    """One network namespace, loopback up, until ``close``; a context manager.

    HostError if namespaces cannot be made here (no root).
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._children: list[subprocess.Popen[Any]] = []
        self._holder = subprocess.Popen(
            die_with_parent(["unshare", "--net", "--", "sh", "-c", "echo up; exec sleep infinity"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "up\n":
            why = self._holder.stderr.read().strip()
            self._reap()
            raise HostError(f"cannot make a network namespace ({why}): run as root")
        self._fd = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link set lo up")

    @property
    def pid(self) -> int:
        """The holder's pid: what ``ip link ... netns PID`` takes."""
        return self._holder.pid

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as a command line that runs inside this namespace."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._fd}", "--", *argv]

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end with output captured as text; CalledProcessError if ``check`` fails."""
        return subprocess.run(
            die_with_parent(self.command(argv)),
            check=check,
            timeout=timeout,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.STDOUT,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a process inside; ``close`` kills it if it still runs."""
        child = subprocess.Popen(
            die_with_parent(self.command(argv)),
            stdout=stdout,
            stderr=stderr,
            stdin=stdin,
            **options,
        )
        self._children.append(child)
        return child

    def ip(self, *lines: str) -> None:
        """Run iproute2 commands (without the word ``ip``), all or CalledProcessError."""
        subprocess.run(
            self.command(["ip", "-batch", "-"]),
            input="\n".join(lines) + "\n",
            check=True,
            text=True,
            capture_output=True,
        )

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in this namespace: sockets opened here stay in it."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._fd)
            try:
                yield
            finally:
                _setns(back)
        finally:
            os.close(back)

    def close(self) -> None:
        """Kill what runs inside and give the namespace up; closing twice is fine."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        self._children.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._reap()

    def _reap(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> "Namespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise HostError(f"cannot enter a network namespace: {os.strerror(code)}")


def veth(a: Namespace, a_name: str, b: Namespace, b_name: str) -> None:
    """A cable: ``a_name`` in ``a`` and ``b_name`` in ``b``, both up and carrying frames."""
    a.ip(f"link add {a_name} type veth peer name {b_name} netns {b.pid}", f"link set {a_name} up")
    b.ip(f"link set {b_name} up")
    # The end that came up before there was a carrier begins to send when a thread of the kernel has
    # seen to it; what is sent before that is lost.
    end = time.monotonic() + _CARRIER_S
    while not _carries(a, a_name) and time.monotonic() < end:
        time.sleep(0.001)


def _carries(space: Namespace, name: str) -> bool:
    request = struct.pack("16sH22x", name.encode(), 0)
    with space.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, request)
    return bool(struct.unpack_from("16sH", answer)[1] & _IFF_RUNNING)
