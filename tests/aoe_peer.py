"""A raw AoE station in the client's namespace, and a server in the other: for netns tests."""

import contextlib
import itertools
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from aoe_fast import Server, Target
from tests.aoe_frames import BROADCAST, READ, WRITE, Reply, ata
from tests.conftest import Cable

PATIENCE = 60.0
"""Seconds that something which is bound to come may take: a machine may be busy elsewhere."""

_LAST = 0x88B5  # IEEE's for experiments: no AoE
_tags = itertools.count(0xF0000000)


class Peer:
    """A raw AoE socket on an interface of the client's namespace."""

    def __init__(self, cable: Cable, mac: bytes | None = None, interface: str = "eth0") -> None:
        self._cable, self._interface = cable, interface
        with cable.cli.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((interface, 0x88A2))
        self.socket.settimeout(PATIENCE)
        self.mac: bytes = mac or self.socket.getsockname()[4]

    def send(self, request: bytes) -> None:
        self.socket.send(request)

    def arrived(self) -> None:
        """Return when all that was sent is in the server's receive queues.

        A veth's frames wait in a queue of the processor that they were sent on: the last one of
        each is awaited.
        """
        with self._cable.srv.inside():
            witness = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        mine = os.sched_getaffinity(0)
        with witness:
            witness.bind((self._interface, _LAST))
            witness.settimeout(PATIENCE)
            try:
                for cpu in mine:
                    os.sched_setaffinity(0, {cpu})
                    self.send((BROADCAST + self.mac + _LAST.to_bytes(2, "big")).ljust(60, b"\0"))
            finally:
                os.sched_setaffinity(0, mine)
            for _ in mine:
                witness.recv(100)

    def receive(self, seconds: float = PATIENCE) -> Reply | None:
        """The next reply to this peer, or None after ``seconds``."""
        end = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
            with contextlib.suppress(OSError):  # ENETDOWN while the link is down
                raw = self.socket.recv(10000)
                if raw[14] & 8 and raw[:6] == self.mac:
                    return Reply(raw)
        return None

    def ask(self, request: bytes, seconds: float = PATIENCE) -> Reply:
        """The reply to this request: it has its tag."""
        self.send(request)
        end = time.monotonic() + seconds
        while (reply := self.receive(max(0, end - time.monotonic()))) is not None:
            if reply.raw[20:24] == request[20:24]:
                return reply
        raise AssertionError("no reply")

    def ask_until(self, request: bytes, seconds: float = PATIENCE) -> Reply:
        """Like a client that repeats: the first answer within ``seconds``.

        Late answers to its repetitions have a tag that nothing else has.
        """
        request = request[:20] + next(_tags).to_bytes(4, "big") + request[24:]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError, AssertionError):
                return self.ask(request, 0.1)
            time.sleep(0.01)
        raise AssertionError(f"no reply in {seconds} s")

    def answers(self, count: int) -> list[Reply]:
        """The next ``count`` replies to this peer, which must come."""
        replies: list[Reply] = []
        while len(replies) < count:
            reply = self.receive()
            assert reply is not None, f"only {len(replies)} replies of {count}"
            replies.append(reply)
        return replies

    def drain(self, seconds: float = 0.05) -> list[Reply]:
        """What arrives until nothing does for a moment; ``answers`` for what must come."""
        replies = []
        while (reply := self.receive(seconds)) is not None:
            replies.append(reply)
        return replies

    def read(self, lba: int, count: int = 2, tag: int = 1, slot: int = 3) -> bytes:
        return ata(READ, lba, count, src=self.mac, dst=BROADCAST, tag=tag, slot=slot)

    def write(self, lba: int, data: bytes, tag: int = 1) -> bytes:
        count = len(data) // 512
        return ata(WRITE, lba, count, data=data, src=self.mac, dst=BROADCAST, tag=tag)


@contextlib.contextmanager
def serving(
    cable: Cable, target: Target, interfaces: tuple[str, ...] = ("eth0",), **options: Any
) -> Iterator[Server]:
    server = Server(target, interfaces, **options)
    with cable.srv.inside():
        server.start()
    try:
        yield server
    finally:
        server.stop()


def total(server: Server, name: str) -> int:
    return int(server.counters[name].sum())


def eventually(done: Any, seconds: float = PATIENCE) -> bool:
    """Whether ``done()`` became true in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
