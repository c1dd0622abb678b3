"""Servers of one machine on one interface tell each other what they serve.

What one of them sends on an interface never comes back to the others, so nobody hears from the wire
that an address is served twice here. Each listens on an abstract unix socket, which belongs to the
network namespace as the interface does, and tells whoever connects. Only who hears AoE on that
interface, or root, is told or believed: any local user can make such a socket, and none of the
others a packet socket.
"""

import contextlib
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aoe_fast.threads import begin

Seen = Mapping[tuple[int, int], frozenset[str] | None]
"""(shelf, slot) -> the machines that see it, as MAC texts; None: all."""

_log = logging.getLogger("aoe_fast")
_NETWORK = Path("/proc/thread-self/net")
_ETHERTYPE = 0x88A2
_PATIENCE = 10.0  # one that is starting answers when it has; another may share a busy machine
_MOST = 16 << 20
LOOK_S = 60.0


def seen_in(
    rows: Iterable[tuple[bytes | None, int, int]],
) -> dict[tuple[int, int], frozenset[str] | None]:
    """Who sees what, of the keys of ``Target.rows()``."""
    found: dict[tuple[int, int], set[str] | None] = {}
    for mac, shelf, slot in rows:
        before = found.setdefault((shelf, slot), set())
        if mac is None:
            found[shelf, slot] = None
        elif before is not None:
            before.add(mac.hex(":"))
    return {at: None if macs is None else frozenset(macs) for at, macs in found.items()}


@dataclass(frozen=True)
class Neighbour:
    """Another server on the same interface of this machine."""

    who: str
    seen: Seen

    def clash(self, ours: Seen) -> tuple[int, int] | None:
        """An address that some machine would find at both; None: there is none."""
        for at, macs in ours.items():
            if at not in self.seen:
                continue
            theirs = self.seen[at]
            if macs is None or theirs is None or macs & theirs:
                return at
        return None


class Presence:
    """Says what this server serves; ``start`` after rights were given up, ``close`` at the end.

    ``shows`` is asked in a thread of this object's. ``look``, where there is one, is called there
    once a minute: nothing that it raises ends the thread.
    """

    def __init__(
        self, who: str, shows: Callable[[], Seen], look: Callable[[], None] | None = None
    ) -> None:
        self._who = who
        self._shows = shows
        self._look = look
        self._listeners: dict[socket.socket, int] = {}
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.since = time.monotonic_ns()
        """Of two that start at once, the one that began to listen earlier is the one that stays."""

    def listen(self, interface: str) -> None:
        """Be found on ``interface``; where that cannot be, others do not find us."""
        if not self._listeners:
            # As late as can be: one who looks before it sees us must have begun earlier than we.
            self.since = time.monotonic_ns()
        with contextlib.suppress(OSError):
            index = socket.if_nametoindex(interface)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._listeners[listener] = index
            listener.bind(f"{_prefix(index)}{self.since}.{os.getpid()}")
            listener.listen(16)
            listener.setblocking(False)

    def start(self) -> None:
        thread = threading.Thread(target=self._run, name="aoe-presence", daemon=True)
        begin(thread)
        self._thread = thread

    def close(self) -> None:
        """Be found no longer; closing twice is fine."""
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._thread = None
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        due = time.monotonic() + LOOK_S
        while True:
            ready = [fd for fd, _ in poll.poll(max(0.0, due - time.monotonic()) * 1000)]
            if self._wake in ready:
                return
            for fd in ready:
                self._tell(by_fd[fd])
            if time.monotonic() >= due:
                due = time.monotonic() + LOOK_S
                self._look_around()

    def _tell(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(_PATIENCE)
                if _believed(peer, self._listeners[listener]):
                    peer.sendall(_pack(self._who, self._shows()))

    def _look_around(self) -> None:
        if self._look is None:
            return
        try:
            self._look()
        except Exception as error:  # there is a next time
            _log.error("cannot look for other servers: %r", error)


def neighbours(interface: str, before: int | None = None) -> Iterator[Neighbour]:
    """Every other server of this machine on ``interface``; only those that began ``before``."""
    try:
        index = socket.if_nametoindex(interface)
        prefix = _prefix(index)
        names = [line.rpartition(" ")[2] for line in _lines("unix") if f"@{prefix[1:]}" in line]
    except OSError:
        return
    for name in names:
        since, _, pid = name[len(prefix) :].partition(".")
        if pid == str(os.getpid()) or not since.isdecimal():
            continue
        if before is not None and int(since) >= before:
            continue  # it looks for us
        answer = _ask(f"\0{name[1:]}", index)
        if answer is not None:
            yield answer


def _ask(name: str, index: int) -> Neighbour | None:
    """What the server that listens there says; None: nothing sensible, or nobody to believe."""
    end = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        with contextlib.ExitStack() as stack:
            # Whoever is asked answers those only that hear this interface: so hear it.
            ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            stack.enter_context(ear)
            ear.bind((socket.if_indextoname(index), 0))
            peer = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            )
            peer.settimeout(_PATIENCE)
            peer.connect(name)
            if not _believed(peer, index):
                return None
            said = bytearray()
            while (more := peer.recv(1 << 16)) and len(said) < _MOST and time.monotonic() < end:
                said += more
        return _unpack(bytes(said))
    return None


def _prefix(index: int) -> str:
    return f"\0aoe-fast.{index}."


def _pack(who: str, seen: Seen) -> bytes:
    rows = [
        [shelf, slot, None if macs is None else sorted(macs)]
        for (shelf, slot), macs in seen.items()
    ]
    return json.dumps({"who": who, "serves": rows}).encode()


def _unpack(said: bytes) -> Neighbour:
    answer = json.loads(said)
    return Neighbour(
        str(answer["who"]),
        {
            (int(shelf), int(slot)): None if macs is None else frozenset(map(str, macs))
            for shelf, slot, macs in answer["serves"]
        },
    )


def _believed(peer: socket.socket, index: int) -> bool:
    """Whether the other end is root's, or a user's who has a packet socket on the interface."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("3i", raw)
    return uid in (0, os.geteuid()) or uid in _listening(index)


def _listening(index: int) -> set[int]:
    """The users of packet sockets on an interface, as /proc/net/packet has them."""
    users = set()
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _lines("packet"):
            # sk RefCnt Type Proto Iface R Rmem User Inode
            words = line.split()
            if words[4] == str(index):
                users.add(int(words[7]))
    return users


def _lines(name: str) -> list[str]:
    return (_NETWORK / name).read_text(errors="replace").splitlines()[1:]
