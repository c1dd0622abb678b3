"""A raw AoE station in the client's namespace, and a server in the other: for netns tests."""

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from aoe_fast import Server, Target
from tests.aoe_frames import BROADCAST, READ, WRITE, Reply, ata
from tests.conftest import Cable


class Peer:
    """A raw AoE socket on an interface of the client's namespace."""

    def __init__(self, cable: Cable, mac: bytes | None = None, interface: str = "eth0") -> None:
        with cable.cli.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((interface, 0x88A2))
        self.socket.settimeout(3)
        self.mac: bytes = mac or self.socket.getsockname()[4]

    def send(self, request: bytes) -> None:
        self.socket.send(request)

    def receive(self, seconds: float = 3) -> Reply | None:
        """The next reply to this peer, or None after ``seconds``."""
        end = time.monotonic() + seconds
        while select.select([self.socket], [], [], max(0, end - time.monotonic()))[0]:
            with contextlib.suppress(OSError):  # ENETDOWN while the link is down
                raw = self.socket.recv(10000)
                if raw[14] & 8 and raw[:6] == self.mac:
                    return Reply(raw)
        return None

    def ask(self, request: bytes, seconds: float = 3) -> Reply:
        self.send(request)
        reply = self.receive(seconds)
        assert reply is not None, "no reply"
        return reply

    def ask_until(self, request: bytes, seconds: float = 8) -> Reply:
        """Like a client that repeats: the first answer within ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.send(request)
                if (reply := self.receive(0.1)) is not None:
                    return reply
        raise AssertionError(f"no reply in {seconds} s")

    def drain(self) -> list[Reply]:
        """What arrives until nothing does for 50 ms."""
        replies = []
        while (reply := self.receive(0.05)) is not None:
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


def eventually(done: Any, seconds: float = 5) -> bool:
    """Whether ``done()`` became true in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
