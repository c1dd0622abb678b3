"""A disk that fails, is slow or lies: what a client is told, and what it is not told."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.aoe_frames import BROADCAST, FLUSH_EXT, READ_EXT, UNC, WRITE_EXT, ata
from tests.aoe_peer import Peer
from tests.conftest import Cable
from tests.fault import test_kills
from tests.fault.variant import ROOT, environment

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1200)]  # also to compile


@contextmanager
def serving(
    cable: Cable, disk: Path, faults: str, durability: str = "durable"
) -> Iterator["subprocess.Popen[bytes]"]:
    process = cable.srv.popen(
        [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--spin-us", "0",
         "--control", str(disk.parent / "control"), "--export", f"7.0={disk},rw,{durability}"],
        stdout=subprocess.PIPE, env=environment(faults), cwd=disk.parent,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def peer(cable: Cable) -> Peer:
    return Peer(cable)


def request(peer: Peer, opcode: int, lba: int, tag: int) -> bytes:
    data = tag.to_bytes(2, "big") * 256 if opcode == WRITE_EXT else b""
    count = 0 if opcode == FLUSH_EXT else 1
    return ata(opcode, lba, count, data=data, shelf=7, slot=0, src=peer.mac, dst=BROADCAST, tag=tag)


def errors(peer: Peer, opcode: int, many: int = 12) -> list[int]:
    """The ATA error register of so many requests, one after the other; 0: it succeeded."""
    replies = [peer.ask(request(peer, opcode, number, number + 1), 60) for number in range(many)]
    assert {reply.status for reply in replies} <= {0x40, 0x41}
    return [reply.ata_error for reply in replies]


@pytest.mark.parametrize(
    ("faults", "opcode"),
    [
        ("write:every=3:error=28", WRITE_EXT),
        ("sync:every=3", WRITE_EXT),
        ("sync:every=3", FLUSH_EXT),
        ("read:every=3", READ_EXT),
    ],
)
def test_an_error_fails_that_request_alone(
    cable: Cable, disk: Path, peer: Peer, faults: str, opcode: int
) -> None:
    with serving(cable, disk, faults):
        assert errors(peer, opcode) == [0, 0, UNC] * 4


def test_a_failed_write_is_not_in_the_file(cable: Cable, disk: Path, peer: Peer) -> None:
    with serving(cable, disk, "write:every=2"):
        assert errors(peer, WRITE_EXT, 4) == [0, UNC] * 2
    data = disk.read_bytes()
    assert [data[512 * n + 1] for n in range(4)] == [1, 0, 3, 0]


def test_durable_waits_for_a_slow_disk_and_writeback_does_not(
    cable: Cable, disk: Path, peer: Peer
) -> None:
    took = {}
    for durability, delay in (("durable", 0.4), ("writeback", 60.0)):
        with serving(cable, disk, f"sync:delay={delay * 1e6:.0f}", durability):
            began = time.monotonic()
            assert peer.ask(request(peer, WRITE_EXT, 0, 1), 50).status == 0x40
            took[durability] = time.monotonic() - began
    assert took["durable"] >= 0.4
    assert took["writeback"] < 60


def test_every_durable_acknowledgement_comes_after_a_sync(
    cable: Cable, disk: Path, peer: Peer, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    with serving(cable, disk, f"log={calls}"):
        for number in range(5):
            peer.ask(request(peer, WRITE_EXT, number, number + 1), 60)
            words = [line.split() for line in calls.read_text().splitlines()]
            kinds = [word[0] for word in words]
            assert kinds[-1] == "sync"
            assert kinds.count("write") == number + 1


def test_the_usual_build_has_no_faults() -> None:
    for path in (ROOT / "aoe_fast").glob("*.so"):
        assert b"AOE_FAULTS" not in path.read_bytes(), path


def test_the_history_checker_sees_a_disk_that_lies(
    cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill tests can fail: here one write in 20 is acknowledged and never made.

    Nobody may have looked at a few of them before they are written over; there are many.
    """

    @contextmanager
    def lying(cable: Cable, disk: Path, _control: Path) -> Iterator["subprocess.Popen[bytes]"]:
        with serving(cable, disk, "write:every=20:lose") as process:
            yield process

    monkeypatch.setattr(test_kills, "server", lying)
    wrong, answered, _ = test_kills.one_run(cable, tmp_path, 1, enough=4000)
    assert answered > 4000
    assert any("stale or lost" in text or "it is lost" in text for text in wrong)
