"""Nothing is left behind: blocks, backings, descriptors, threads, memory."""

import gc
import itertools
import os
import threading
from pathlib import Path

import pytest

from aoe_fast import AoeError, Export, Server, Target, fetch, parking
from aoe_fast.memory import live_blocks
from aoe_fast.store import live_backings
from bench.native import program
from tests.aoe_frames import BROADCAST, FLUSH, ata, config, frame
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns

CYCLES = 200


def resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def held() -> tuple[int, int, int, int]:
    """(blocks, backings, descriptors, threads)"""
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    return live_blocks(), live_backings(), fds, threading.active_count()


def nothing_more_than(before: tuple[int, int, int, int]) -> bool:
    """Soon; what tests before this one left to the collector may be gone besides."""
    if eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True))):
        return True
    print(f"{held()}, and {before} before")
    return False


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


def test_every_path_gives_its_memory_back(cable: Cable, disk: Path) -> None:
    peer = Peer(cable)
    before = held()
    for durability in ("durable", "writeback"):
        target = Target()
        exports = [Export(disk, writable=True, durability=durability) for _ in range(2)]
        target.set_view(None, {(16, slot): exports[slot % 2] for slot in range(100)})
        for number in range(100):
            target.set_view(bytes([2, 0, 0, 0, 0, number]), {(16, 0): exports[0]})
        for number in range(50):
            target.drop_view(bytes([2, 0, 0, 0, 0, number]))
        with serving(cable, target):
            peer.send(frame(1, config(0), src=peer.mac, dst=BROADCAST, shelf=0xFFFF, slot=0xFF))
            for tag in range(200):
                peer.send(peer.read(tag, tag=tag))
                peer.send(peer.write(tag, b"x" * 512, tag=tag))
            peer.send(ata(FLUSH, src=peer.mac, dst=BROADCAST))
            peer.answers(501)
            assert peer.drain() == []
        for export in exports:
            export.close()
        del target, exports
    assert nothing_more_than(before)


@pytest.mark.parametrize("what", ["read", "write"])
def test_what_waits_for_a_disk_at_the_stop_is_given_back(
    cable: Cable, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "cold"
    path.write_bytes(bytes(1 << 22))
    peer = Peer(cable)
    before = held()
    for module in (fetch, parking):
        module.set_delay(20000)
    try:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        target = Target()
        target.set_view(None, {(16, 3): Export(path, writable=what == "write")})
        with serving(cable, target):
            for tag in range(32):
                if what == "read":
                    peer.send(peer.read(tag * 128, tag=tag))
                else:
                    peer.send(peer.write(tag * 128, b"x" * 512, tag=tag))
            peer.arrived()
        del target
    finally:
        for module in (fetch, parking):
            module.set_delay(0)
    assert nothing_more_than(before)


def test_a_failed_start_leaves_nothing(cable: Cable, disk: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): Export(disk)})
    before = held()
    for _ in range(20):
        server = Server(target, ["eth0", "eth7"], workers=2)
        with cable.srv.inside(), pytest.raises(AoeError):
            server.start()
        del server
    assert nothing_more_than(before)


@pytest.mark.parametrize("most", [0, 12, 21, 22, 23])
def test_too_few_threads_leave_nothing(
    cable: Cable, disk: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of side threads, a worker of two, the caretaker the first one that there is no room for."""
    target = Target()
    target.set_view(None, {(16, 3): Export(disk)})
    peer = Peer(cable)
    before = held()
    really, count = threading.Thread.start, itertools.count()

    def start(thread: threading.Thread) -> None:
        if next(count) == most:
            raise RuntimeError("can't start new thread")
        really(thread)

    server = Server(target, ["eth0"], workers=2)
    with cable.srv.inside(), monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(AoeError, match="no more threads"):
            server.start()
    assert not server.running
    assert nothing_more_than(before)
    with cable.srv.inside(), server:
        assert peer.ask(peer.read(0)).status == 0x40
    del server
    assert nothing_more_than(before)


def test_starting_and_stopping_again_and_again(cable: Cable, disk: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): Export(disk, writable=True)})
    peer = Peer(cable)
    memory = 0
    before = held()
    for cycle in range(CYCLES):
        with serving(cable, target):
            assert peer.ask(peer.read(0)).status == 0x40
            assert peer.ask(peer.write(0, b"w" * 512)).status == 0x40
        if cycle == 20:
            memory = resident_kb()
    assert nothing_more_than(before)
    # One leaked batch or outbox each time would be 50 MiB.
    assert resident_kb() - memory < 24 << 10


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_thousand_starts(cable: Cable, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.netns.test_aoe_leaks.CYCLES", 1000)
    test_starting_and_stopping_again_and_again(cable, disk)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_million_requests(cable: Cable, disk: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 0): Export(disk, writable=True, durability="writeback")})
    before = held()
    with serving(cable, target) as server:
        words = {
            "interface": "eth0", "target": server.ports[0].mac.hex(":"), "clients": 8, "window": 32,
            "op": "write", "sectors": 2, "exports": 1, "span": 2000, "seconds": 5, "wait": "sleep",
        }  # fmt: skip
        load = [str(program("generator")), *(f"{key}={value}" for key, value in words.items())]
        cable.cli.run(load)
        memory = resident_kb()
        while total(server, "replies") < 10_000_000:
            cable.cli.run(load)
        assert resident_kb() - memory < 4096
        print(f"{total(server, 'replies')} requests, {resident_kb() - memory} KiB more")
    assert nothing_more_than(before)
