"""Planned restarts under load: how long a seat waits, and that it is told of no error.

The seat reads and writes stamped sectors, one request at a time, and repeats after 50 ms what is
not answered. The server is stopped with SIGTERM and started again when it has ended.
"""

import argparse
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from bench.overload import SEAT, Room, filter_for
from pxed.lab.netns import Namespace
from pxed.mac import mac_bytes

_REPEAT = 0.05
_SECTORS = 64
_FIRST = 400_000  # nothing of the file system is here


@dataclass
class Seat:
    """What the seat saw: ``gaps`` in seconds between answers, ``errors`` in words.

    ``rest``: seconds between an answer and its next request.
    """

    rest: float = 0.0
    answers: int = 0
    longest: float = 0.0
    errors: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    stop: bool = False

    def run(self, cli: Namespace) -> None:
        """Read and write from ``cli`` until ``stop``."""
        with cli.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            filter_for(wire, mac_bytes(SEAT))
            wire.bind(("eth0", 0x88A2))
            wire.settimeout(_REPEAT)
            written: dict[int, int] = {}
            last, tag = time.monotonic(), 0
            while not self.stop:
                if self.rest:
                    time.sleep(self.rest)
                tag += 1
                sector = tag // 2 % _SECTORS
                writes = tag % 2 == 0
                raw = self._ask(wire, tag, sector, writes)
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
                last = now
                if raw is None:
                    continue
                self.answers += 1
                if raw[14] & 4 or raw[27] != 0x40:
                    self.errors.append(f"request {tag}: {raw[14:36].hex()}")
                elif writes:
                    written[sector] = tag
                elif raw[36:548] != _content(written.get(sector, 0)):
                    self.errors.append(f"sector {sector}: not what was acknowledged")

    def _ask(self, wire: socket.socket, tag: int, sector: int, writes: bool) -> bytes | None:
        head = struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, 16, 3, 0, tag)
        body = struct.pack(">BBBB", 0x40, 0, 1, 0x34 if writes else 0x24)
        body += (
            (_FIRST + sector).to_bytes(6, "little") + b"\0\0" + (_content(tag) if writes else b"")
        )
        while not self.stop:
            wire.send(b"\xff" * 6 + mac_bytes(SEAT) + head + body)
            end = time.monotonic() + _REPEAT
            while time.monotonic() < end:
                try:
                    raw = wire.recv(2000)
                except TimeoutError:
                    break
                if raw[:6] == mac_bytes(SEAT) and raw[14] & 8 and raw[20:24] == head[8:12]:
                    return raw
        return None


def _content(tag: int) -> bytes:
    return tag.to_bytes(8, "big") * 64 if tag else bytes(512)


def restart(room: Room, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Stop the server and start it again, until it serves; its exit status and its last words."""
    said = room.state / "said"
    room.process.send_signal(how)
    status = room.process.wait(60)
    last = said.read_text().strip().splitlines()[-1] if said.exists() else ""
    with said.open("wb") as out:
        room.process = room.srv.popen(
            [sys.executable, "-m", "pxed", "serve", "-c", str(room.state.parent / "pxed.toml")],
            stdout=subprocess.DEVNULL, stderr=out,
        )  # fmt: skip
    room.until_serving()
    return status, last


def _works(seat: Seat, pause: float) -> None:
    """Return after ``pause`` and once the seat had answers in it; RuntimeError if none come."""
    enough, end = seat.answers + 50, time.monotonic() + 120
    time.sleep(pause)
    while seat.answers < enough:
        if time.monotonic() > end:
            raise RuntimeError(f"{seat.answers} answers, and no more")
        time.sleep(0.02)


def run(room: Room, times: int, pause: float = 1.5) -> tuple[Seat, list[tuple[int, str]]]:
    """``times`` restarts while the seat works; what it saw, and how each stop went."""
    restart(room)  # its log goes to a file from now on
    time.sleep(pause)
    seat = Seat()
    thread = threading.Thread(target=seat.run, args=(room.cli,))
    thread.start()
    stops = []
    try:
        for _ in range(times):
            _works(seat, pause)
            seat.longest = 0.0
            stops.append(restart(room))
            _works(seat, pause)
            seat.gaps.append(seat.longest)
    finally:
        seat.stop = True
        thread.join()
    return seat, stops


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench restart", description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    given = parser.parse_args(argv)
    with Room() as room:
        seat, stops = run(room, given.times)
    print(f"{given.times} restarts, {seat.answers} requests answered, {len(seat.errors)} errors; "
          f"the seat waited {statistics.median(seat.gaps):.2f} s (median), "
          f"{max(seat.gaps):.2f} s at most")  # fmt: skip
    return int(bool(seat.errors) or any(status for status, _ in stops))
