"""Reads whose data is not in memory wait for the disk on their own, and nobody waits with them."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.fetch import set_delay
from aoe_fast.residency import known, scan
from tests.aoe_frames import UNC
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns

CHUNK = 65536
SIZE = 64 * CHUNK
DISTANT_US = 60_000_000


@contextlib.contextmanager
def standstill(set_delay: Callable[[int], None] = set_delay) -> Iterator[None]:
    """The disk stands still for the module of ``set_delay``, until the end or ``set_delay(0)``."""
    set_delay(DISTANT_US)
    try:
        yield
    finally:
        set_delay(0)


def let_go(path: Path, export: Export) -> bool:
    """Try to have no page of ``path`` in memory; whether the scan of ``export`` finds none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    scan(export, 0, 1000, True)
    return known(export) == 0


def evict(path: Path) -> None:
    """Have no page of ``path`` in memory; skips where the file system has no disk."""
    with Export(path) as export:
        # Pages that the kernel is still at stay for the moment.
        if not eventually(lambda: let_go(path, export), 1):
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
    warm = images[1].read_bytes()
    target = Target()
    target.set_view(None, {(16, 0): Export(images[0]), (16, 1): Export(images[1])})
    reader, bystander = Peer(cable), Peer(cable, mac=b"\x02\0\0\0\0\x77")
    cable.cli.ip("link set eth0 promisc on")
    with serving(cable, target) as server, standstill():
        for tag in range(16):
            reader.send(reader.read(tag * 128, tag=tag, slot=0))
        assert eventually(lambda: server.handed_over()[1] == 16)
        before = major_faults()  # of the program itself, if anything
        for n in range(200):
            reply = bystander.ask(bystander.read(2 * n, slot=1))
            assert reply.data == warm[1024 * n : 1024 * n + 1024]
        assert server.answered()[1] == 0, "a warm read waited for a cold one"
        set_delay(0)
        replies = reader.answers(16)
        assert major_faults() == before
        assert total(server, "cold") == 16
    data = images[0].read_bytes()
    for answer in replies:
        assert answer.data == data[answer.tag * CHUNK : answer.tag * CHUNK + 1024]


def test_what_was_fetched_is_warm(cable: Cable, images: list[Path]) -> None:
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
        assert eventually(lambda: let_go(images[1], export))
        images[1].read_bytes()
        scan(export, 0, 1000, True)
        assert known(export) == SIZE // CHUNK


def test_a_part_that_begins_within_a_page(images: list[Path]) -> None:
    images[1].read_bytes()
    with Export(images[1], offset=512 * 3, length=3 * CHUNK + 512) as export:
        scan(export, 0, 1000, True)
        assert known(export) == 4


def test_a_cold_image_cut_short_is_unc(cable: Cable, images: list[Path]) -> None:
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
        set_delay(100_000)  # it stops with some of them waiting
        try:
            for tag in range(8):
                peer.send(peer.read(tag * 128, tag=tag))
            peer.arrived()
            server.stop()
        finally:
            set_delay(0)
        assert {reply.tag for reply in peer.answers(8)} == set(range(8))
