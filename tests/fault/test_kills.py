"""kill -9 at random moments under several initiators: the history is one that a disk can have.

Kills keep the page cache, so what this shows is that nothing is acknowledged before it is written,
that one client's writes keep their order, that no read is stale, and that a restart changes nothing
of that. Power cuts are test_power_loss.py's.
"""

import contextlib
import math
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aoe_frames import BROADCAST, READ_EXT, WRITE_EXT, ata
from tests.conftest import Cable
from tests.fault.history import INITIAL, Operation, Order, reorderings, violations

pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

SECTORS = 24
CLIENTS = 4
WINDOW = 6
PATIENCE = 0.4
RUN_S = 2.4  # at least, and until enough is answered
ENOUGH = 100
STAMP = struct.Struct("<QQ")


def sector_of(value: int, sector: int) -> bytes:
    return STAMP.pack(value, sector) * 32


def value_of(data: bytes, sector: int) -> int:
    """The value that a whole sector carries; a torn one is no value that was ever written."""
    value, where = STAMP.unpack_from(data)
    if data == bytes(512):
        return INITIAL
    return value if data == sector_of(value, sector) and where == sector else -1


class Station:
    """An initiator that has several requests out, repeats none, and writes its history down."""

    def __init__(self, number: int, seed: int) -> None:
        self.mac = bytes([2, 0, 0, 0, 1, number])
        self.history: list[Operation] = []
        self.orders: list[Order] = []
        self._chance = random.Random(seed * 100 + number)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88A2))
        self._socket.bind(("eth0", 0x88A2))
        self._socket.setsockopt(263, 1, struct.pack("iHH8s", socket.if_nametoindex("eth0"), 1, 0,
                                                    b""))  # fmt: skip
        self._socket.settimeout(0.02)
        self._number = number
        self._tag = 0
        self._out: dict[int, tuple[int, int, float]] = {}  # tag: sector, value (reads: -1), sent
        self._pipeline: dict[int, Operation] = {}  # by sector: the latest answered write
        self.answered = 0
        self.errors: list[str] = []

    def run(self, stop: threading.Event) -> None:
        # What one CPU sends arrives in its order; two have a queue each.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with self._socket:
            while not stop.is_set():
                while len(self._out) < WINDOW:
                    self._send()
                self._receive()
                self._give_up()
            self._give_up(everything=True)

    def _send(self) -> None:
        self._tag += 1
        sector = self._chance.randrange(SECTORS)
        value = -1
        if self._chance.random() < 0.5:
            value = self._tag << 8 | self._number
            data = sector_of(value, sector)
            frame = ata(WRITE_EXT, sector, 1, data=data, shelf=7, slot=0, src=self.mac,
                        dst=BROADCAST, tag=self._tag)  # fmt: skip
        else:
            frame = ata(READ_EXT, sector, 1, shelf=7, slot=0, src=self.mac, dst=BROADCAST,
                        tag=self._tag)  # fmt: skip
        self._out[self._tag] = (sector, value, time.monotonic())
        self._socket.send(frame)

    def _receive(self) -> None:
        with contextlib.suppress(TimeoutError):
            raw = self._socket.recv(2000)
            now = time.monotonic()
            tag = int.from_bytes(raw[20:24], "big")
            if raw[:6] != self.mac or not raw[14] & 8 or tag not in self._out:
                return
            sector, value, began = self._out.pop(tag)
            if raw[27] != 0x40:
                self.errors.append(f"sector {sector}: an ATA error, {raw[24:36].hex()}")
                return
            self.answered += 1
            if value < 0:
                got = value_of(raw[36:548], sector)
                self.history.append(Operation(sector, False, got, began, now))
            else:
                self._wrote(Operation(sector, True, value, began, now))

    def _wrote(self, write: Operation) -> None:
        """One client's writes take effect in the order in which they were sent."""
        self.history.append(write)
        other = self._pipeline.get(write.sector)
        if other is not None:
            first, second = sorted((other, write), key=lambda each: each.begin)
            self.orders.append(Order(write.sector, first.value, second.value, second.end))
        if other is None or other.begin < write.begin:
            self._pipeline[write.sector] = write

    def _give_up(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        for tag, (sector, value, began) in list(self._out.items()):
            if everything or now - began > PATIENCE:
                del self._out[tag]
                if value >= 0:
                    self.history.append(Operation(sector, True, value, began, math.inf))


@contextlib.contextmanager
def server(cable: Cable, disk: Path, control: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = cable.srv.popen(
        [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--spin-us", "0",
         "--control", str(control), "--export", f"7.0={disk},rw,durable"], stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def one_run(
    cable: Cable, directory: Path, seed: int, enough: int = ENOUGH
) -> tuple[list[str], int, int]:
    """What is wrong, how many requests were answered, how often the server was killed.

    It goes on until there were ``enough`` answers, for two minutes at most.
    """
    chance = random.Random(seed)
    disk, control = directory / f"disk{seed}", directory / "control"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
    with cable.cli.inside():
        stations = [Station(number, seed) for number in range(CLIENTS)]
    stop = threading.Event()
    threads = [threading.Thread(target=each.run, args=(stop,)) for each in stations]
    kills, began = 0, time.monotonic()
    for thread in threads:
        thread.start()
    try:
        while time.monotonic() < began + RUN_S or (
            sum(each.answered for each in stations) <= enough and time.monotonic() < began + 120
        ):
            with server(cable, disk, control) as process:
                time.sleep(chance.uniform(0.01, 0.6))
                process.send_signal(signal.SIGKILL)
                kills += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    history = [operation for each in stations for operation in each.history]
    data = disk.read_bytes()
    end = time.monotonic()
    for sector in range(SECTORS):
        value = value_of(data[sector * 512 : sector * 512 + 512], sector)
        history.append(Operation(sector, False, value, end, end + 1))
    disk.unlink()
    orders = [order for each in stations for order in each.orders]
    return (
        violations(history)
        + reorderings(history, orders)
        + [text for each in stations for text in each.errors],
        sum(each.answered for each in stations),
        kills,
    )


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_under_load(cable: Cable, tmp_path: Path, seed: int) -> None:
    wrong, answered, kills = one_run(cable, tmp_path, seed)
    assert wrong == []
    assert answered > ENOUGH
    assert kills >= 1


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_runs(cable: Cable, tmp_path: Path) -> None:
    answered = kills = 0
    for seed in range(100, 200):
        wrong, more, killed = one_run(cable, tmp_path, seed)
        assert wrong == [], f"seed {seed}"
        answered += more
        kills += killed
    print(f"100 runs, {kills} kills, {answered} requests answered")
