"""Reads whose data is not in memory wait for the disk on their own, and nobody waits with them."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.fetch import set_delay
from aoe_fast.residency import known, scan
from tests.aoe_frames import UNC
from tests.aoe_peer import Peer, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns

CHUNK = 65536
SIZE = 64 * CHUNK
SLOW_S = 0.25


@pytest.fixture(autouse=True)
def slow() -> Iterator[None]:
    set_delay(int(SLOW_S * 1e6))
    yield
    set_delay(0)


def evict(path: Path) -> None:
    """Have no page of ``path`` in memory; skips where the file system has no disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with Export(path) as export:
        scan(export, 0, 1000, True)
        if known(export):
            pytest.skip(f"{path.parent} keeps files in memory: point TMPDIR at a disk")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """A cold one and a warm one."""
    paths = [tmp_path / "cold", tmp_path / "warm"]
    for path in paths:
        path.write_bytes(os.urandom(SIZE))
    evict(paths[0])
    return paths


def major_faults() -> int:
    """Waits for a disk by worker threads so far (proc_pid_stat(5), majflt)."""
    faults = 0
    for thread in threading.enumerate():
        if thread.name.startswith("aoe-eth"):
            stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            faults += int(stat.rpartition(")")[2].split()[9])
    return faults


def test_cold_reads_do_not_stall_warm_ones(cable: Cable, images: list[Path]) -> None:
    cold, warm = (path.read_bytes() if path.name == "warm" else None for path in images)
    assert cold is None
    assert warm is not None
    target = Target()
    target.set_view(None, {(16, 0): Export(images[0]), (16, 1): Export(images[1])})
    reader, bystander = Peer(cable), Peer(cable, mac=b"\x02\0\0\0\0\x77")
    cable.cli.ip("link set eth0 promisc on")
    with serving(cable, target) as server:
        for tag in range(16):
            reader.send(reader.read(tag * 128, tag=tag, slot=0))
        start = time.monotonic()
        for n in range(200):
            reply = bystander.ask(bystander.read(2 * n, slot=1))
            assert reply.data == warm[1024 * n : 1024 * n + 1024]
        assert time.monotonic() - start < SLOW_S, "a warm read waited for a cold one"
        replies = [reader.receive() for _ in range(16)]
        assert major_faults() == 0
        assert total(server, "cold") == 16
    data = images[0].read_bytes()
    for answer in replies:
        assert answer is not None
        assert answer.data == data[answer.tag * CHUNK : answer.tag * CHUNK + 1024]


def test_what_was_fetched_is_warm(cable: Cable, images: list[Path]) -> None:
    set_delay(0)
    export = Export(images[0])
    target = Target()
    target.set_view(None, {(16, 3): export})
    peer = Peer(cable)
    with serving(cable, target) as server:
        assert known(export) == 0
        for n in range(64):
            assert peer.ask(peer.read(2 * n)).status == 0x40
        # The first fetches the chunk; by the next one or two it is known to be there.
        assert 1 <= total(server, "cold") < 16
        before = total(server, "cold")
        for n in range(64):
            peer.ask(peer.read(2 * n))
        assert total(server, "cold") == before
        assert known(export)
        # Bytes on both sides of 64 KiB need both chunks.
        assert len(peer.ask(peer.read(8 * 128 - 1)).data) == 1024


def test_everything_in_memory_is_known_at_start(cable: Cable, images: list[Path]) -> None:
    export = Export(images[1])
    target = Target()
    target.set_view(None, {(16, 3): export})
    peer = Peer(cable)
    with serving(cable, target) as server:
        assert known(export) == SIZE // CHUNK
        for n in range(64):
            peer.ask(peer.read(n * 128))
        assert total(server, "cold") == 0


def test_what_was_evicted_is_forgotten(images: list[Path]) -> None:
    images[1].read_bytes()
    with Export(images[1]) as export:
        scan(export, 0, 1000, True)
        assert known(export) == SIZE // CHUNK
        fd = os.open(images[1], os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        scan(export, 0, 1000, False)
        assert known(export) == 0


def test_a_part_that_begins_within_a_page(images: list[Path]) -> None:
    images[1].read_bytes()
    with Export(images[1], offset=512 * 3, length=3 * CHUNK + 512) as export:
        scan(export, 0, 1000, True)
        assert known(export) == 4


def test_a_cold_image_cut_short_is_unc(cable: Cable, images: list[Path]) -> None:
    set_delay(0)
    target = Target()
    target.set_view(None, {(16, 3): Export(images[0])})
    os.truncate(images[0], CHUNK)
    peer = Peer(cable)
    with serving(cable, target):
        reply = peer.ask(peer.read(1000))
        assert (reply.status, reply.ata_error, len(reply.raw)) == (0x41, UNC, 60)


def test_stopping_answers_cold_reads_too(cable: Cable, images: list[Path]) -> None:
    target = Target()
    target.set_view(None, {(16, 3): Export(images[0])})
    peer = Peer(cable)
    with serving(cable, target) as server:
        for tag in range(8):
            peer.send(peer.read(tag * 128, tag=tag))
        server.stop()
        assert {reply.tag for reply in peer.drain()} == set(range(8))
