"""Writes of parts of pages that are not in memory: nobody waits with them, and no order is lost."""

import os
import resource
import signal
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.parking import set_delay
from tests.aoe_frames import UNC
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable
from tests.netns.test_aoe_cold import evict, standstill

pytestmark = pytest.mark.netns

CHUNK = 65536
SIZE = 32 * CHUNK


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A disk of which nothing is in memory."""
    path = tmp_path / "cold"
    path.write_bytes(os.urandom(SIZE))
    evict(path)
    return path


def target_of(*disks: Path, durability: str = "durable") -> Target:
    """The disks at 16.3, 16.4, ..."""
    target = Target()
    target.set_view(
        None,
        {
            (16, 3 + number): Export(disk, writable=True, durability=durability)
            for number, disk in enumerate(disks)
        },
    )
    return target


@pytest.mark.parametrize("durability", ["durable", "writeback"])
def test_a_cold_write_stalls_nobody(cable: Cable, cold: Path, durability: str) -> None:
    warm = cold.with_name("warm")
    warm.write_bytes(bytes(SIZE))
    writer, bystander = Peer(cable), Peer(cable, mac=b"\x02\0\0\0\0\x77")
    cable.cli.ip("link set eth0 promisc on")
    with (
        serving(cable, target_of(cold, warm, durability=durability)) as server,
        standstill(set_delay),
    ):
        writer.send(writer.write(5, b"c" * 512, tag=7))
        assert eventually(lambda: server.handed_over()[0] == 1)
        for n in range(200):
            assert bystander.ask(bystander.read(2 * n, slot=4)).status == 0x40
        assert server.answered()[0] == 0, "a warm read waited for a cold write"
        assert writer.receive(0) is None, "acknowledged before it was written"
        set_delay(0)
        (reply,) = writer.answers(1)
        assert (reply.tag, reply.status) == (7, 0x40)
        assert total(server, "parked") == 1
        if durability == "durable":
            assert total(server, "syncs") == 1, "acknowledged without a sync"
        row = server.target.stats[server.target.rows()[None, 16, 3]]
        assert eventually(lambda: (row["writes"], row["latency"].sum()) == (1, 1))
    assert cold.read_bytes()[5 * 512 : 6 * 512] == b"c" * 512


def test_what_comes_after_a_cold_write_stays_behind_it(cable: Cable, cold: Path) -> None:
    """Whole pages and warm ones too: overlapping writes of a client keep their order."""
    peer = Peer(cable)
    with serving(cable, target_of(cold)) as server, standstill(set_delay):
        for tag in range(60):
            first, many = (0, 2) if tag % 2 else (tag % 3, 1)
            peer.send(peer.write(first, bytes([tag]) * 512 * many, tag=tag))
        assert eventually(lambda: server.handed_over()[0] == 60)
        set_delay(0)
        # Of two syncs at once either may end first: it is the data that keeps the order.
        assert sorted(reply.tag for reply in peer.answers(60)) == list(range(60))
        assert total(server, "parked") == 60
    data = cold.read_bytes()
    assert data[:1024] == bytes([59]) * 1024
    assert data[1024:1536] == bytes([56]) * 512


def test_a_whole_page_waits_for_nothing(cable: Cable, cold: Path) -> None:
    cable.srv.ip("link set eth0 mtu 9000")
    cable.cli.ip("link set eth0 mtu 9000")
    peer = Peer(cable)
    with serving(cable, target_of(cold)) as server:
        for first in (0, 8, 256):
            assert peer.ask(peer.write(first, b"p" * 4096)).status == 0x40
        assert total(server, "parked") == 0
        assert peer.ask(peer.write(1003, b"q" * 4096)).status == 0x40
        assert total(server, "parked") == 1


def test_what_was_brought_in_is_warm(cable: Cable, cold: Path) -> None:
    peer = Peer(cable)
    with serving(cable, target_of(cold)) as server:
        for lba in range(100):
            assert peer.ask(peer.write(lba, b"w" * 512)).status == 0x40
        assert 1 <= total(server, "parked") < 20
    assert cold.read_bytes()[: 100 * 512] == b"w" * 51200


def test_other_exports_do_not_line_up(cable: Cable, cold: Path) -> None:
    warm = cold.with_name("warm")
    warm.write_bytes(bytes(SIZE))
    peer = Peer(cable)
    with serving(cable, target_of(warm, cold)) as server, standstill(set_delay):
        request = bytearray(peer.write(0, b"c" * 512, tag=1))
        request[18] = 4
        peer.send(bytes(request))
        assert eventually(lambda: server.handed_over()[0] == 1)
        assert peer.ask(peer.write(0, b"w" * 512, tag=2)).tag == 2
        assert server.answered()[0] == 0, "it waited for another export's"
        set_delay(0)
        assert eventually(lambda: total(server, "parked") == 1)


def test_stopping_writes_and_answers_what_waits(cable: Cable, cold: Path) -> None:
    peer = Peer(cable)
    with serving(cable, target_of(cold)) as server:
        set_delay(100_000)  # it stops with some of them waiting
        try:
            for tag in range(3):
                peer.send(peer.write(200 * tag, bytes([tag + 1]) * 512, tag=tag))
            assert eventually(lambda: server.handed_over()[0] == 3)
            server.stop()
        finally:
            set_delay(0)
        replies = sorted((reply.tag, reply.status) for reply in peer.answers(3))
        assert replies == [(n, 0x40) for n in range(3)]
        assert server.counters["syncs"].sum() >= 1
    assert cold.read_bytes()[400 * 512 : 401 * 512] == b"\3" * 512


def test_closing_an_export_waits_for_what_is_to_be_written(cable: Cable, cold: Path) -> None:
    target = Target()
    export = Export(cold, writable=True)
    target.set_view(None, {(16, 3): export})
    peer = Peer(cable)
    with serving(cable, target) as server:
        set_delay(100_000)
        try:
            peer.send(peer.write(3, b"z" * 512))
            assert eventually(lambda: server.handed_over()[0] == 1)
            target.set_view(None, {})
            export.close()
        finally:
            set_delay(0)
        assert cold.read_bytes()[3 * 512 : 4 * 512] == b"z" * 512


def test_a_cold_write_that_fails_is_unc_and_the_next_one_is_fine(cable: Cable, cold: Path) -> None:
    peer = Peer(cable)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with serving(cable, target_of(cold)) as server:
            # pwrite past it fails, as it does on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK, old[1]))
            failed = peer.ask(peer.write(129, b"x" * 512))
            fine = peer.ask(peer.write(1, b"x" * 512))
            assert (failed.status, failed.ata_error) == (0x41, UNC)
            assert fine.status == 0x40
            assert total(server, "ata_errors") == 1
            assert total(server, "parked") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
