"""What the server knows of its clients: requests, errors by kind, latency, repetitions."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_fast import Export, Server, Target
from aoe_fast.fetch import set_delay
from aoe_fast.residency import known
from aoe_fast.stats import clients_of, rows_of
from tests.aoe_frames import ABRT, BROADCAST, IDENTIFY, IDNF, UNC, ata, config, frame
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable, requires

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.netns


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    target = Target()
    target.set_view(None, {(16, 3): Export(path, writable=True)})
    return target


@pytest.fixture
def peer(cable: Cable) -> Iterator[Peer]:
    for side in (cable.srv, cable.cli):
        side.ip("link set eth0 mtu 9000")
    peer = Peer(cable)
    yield peer
    peer.socket.close()


def client(server: Server, mac: bytes) -> dict[str, Any]:
    (row,) = [row for row in clients_of(server) if row["mac"] == mac.hex(":")]
    return row


def test_each_client_has_its_row(cable: Cable, peer: Peer, target: Target) -> None:
    cable.cli.ip("link set eth0 promisc on")
    other = Peer(cable, mac=b"\x02\0\0\0\0\x42")
    with serving(cable, target, workers=2) as server:
        peer.ask(peer.read(0, 2))
        peer.ask(peer.write(8, b"w" * 4096))
        peer.ask(ata(0x20, 0, 0, src=peer.mac, dst=BROADCAST))
        peer.ask(ata(0x24, 1 << 40, 1, src=peer.mac, dst=BROADCAST))
        peer.ask(frame(9, src=peer.mac, dst=BROADCAST))
        other.ask(other.read(0, 2))
        mine, yours = client(server, peer.mac), client(server, other.mac)
        assert (mine["requests"], mine["bytes"]) == (5, 1024 + 4096)
        assert mine["errors"] == {"aoe": 1, "abrt": 1, "idnf": 1, "unc": 0}
        assert (yours["requests"], yours["bytes"]) == (1, 1024)
        assert yours["interface"] == "eth0"
        assert len(clients_of(server)) == 2


def test_latency_of_reads_and_durable_writes(cable: Cable, peer: Peer, target: Target) -> None:
    with serving(cable, target) as server:
        start = time.monotonic()
        for n in range(50):
            peer.ask(peer.read(n))
        peer.ask(peer.write(8, b"w" * 512))
        took_us = (time.monotonic() - start) * 1e6
        assert eventually(lambda: sum(client(server, peer.mac)["latency"]) == 51)
        assert eventually(lambda: sum(rows_of(server)[0]["latency"]) == 51)  # counted after that
        (row,) = rows_of(server)
        assert 0 < row["p50_us"] < took_us / 10


def test_latency_of_a_slow_disk(cable: Cable, peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "cold"
    path.write_bytes(bytes(1 << 20))
    export = Export(path)
    target = Target()
    target.set_view(None, {(16, 3): export})
    set_delay(50000)
    try:
        with serving(cable, target) as server:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
            if not eventually(lambda: known(export) == 0, 10):  # it is looked at each second
                pytest.skip("this file system keeps files in memory")
            peer.ask(peer.read(0))
            assert total(server, "cold") == 1
            assert eventually(lambda: sum(client(server, peer.mac)["latency"]) == 1)
            assert client(server, peer.mac)["p50_us"] > 40000
    finally:
        set_delay(0)


def test_repetitions_are_recognised(cable: Cable, peer: Peer, target: Target) -> None:
    with serving(cable, target) as server:
        peer.ask(peer.read(0))
        server.ports[0].halt()
        for tag in (1, 2):  # at once: another reader, not a repetition
            peer.send(peer.read(4, tag=tag))
        peer.arrived()
        server.ports[0].start()
        peer.answers(2)
        assert client(server, peer.mac)["repeats"] == 0
        for tag in (3, 4):
            time.sleep(0.1)
            peer.ask(peer.read(4, tag=tag))
        peer.ask(peer.read(6, tag=5))
        assert client(server, peer.mac)["repeats"] == 2
        assert total(server, "repeats") == 2


def test_a_write_of_other_data_is_no_repetition(cable: Cable, peer: Peer, target: Target) -> None:
    with serving(cable, target) as server:
        for value in (1, 2, 2, 3):
            time.sleep(0.06)
            peer.ask(peer.write(4, bytes(300) + bytes([value]) * 212))
        assert client(server, peer.mac)["repeats"] == 1


def test_a_client_is_told_apart_by_its_kinds_of_errors(
    cable: Cable, peer: Peer, target: Target
) -> None:
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with serving(cable, target) as server:
            assert peer.ask(peer.read(1 << 40)).ata_error == IDNF
            assert peer.ask(peer.read(0, 0)).ata_error == ABRT
            # A whole page: written by the worker itself, and refused as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
            assert peer.ask(peer.write(64, b"x" * 1024)).ata_error == UNC
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            errors = client(server, peer.mac)["errors"]
            assert errors == {"aoe": 0, "abrt": 1, "idnf": 1, "unc": 1}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_black_hole_for_long_frames_is_recognised(
    cable: Cable, peer: Peer, target: Target
) -> None:
    """A switch with a smaller MTU: config and IDENTIFY come through, long replies never do."""
    with serving(cable, target) as server:
        peer.ask(frame(1, config(0), src=peer.mac, dst=BROADCAST))
        peer.ask(ata(IDENTIFY, src=peer.mac, dst=BROADCAST))
        for tag in range(4):
            time.sleep(0.06)
            for lba in (0, 16, 32):
                peer.send(peer.read(lba, 16, tag=tag))
            peer.answers(3)
        row = client(server, peer.mac)
        assert row["mtu_black_hole"]
        assert row["repeats"] == 9
        # One new long read is progress: the link carries them after all.
        peer.ask(peer.read(100, 16))
        assert not client(server, peer.mac)["mtu_black_hole"]


# A monotonic clock that stands still, as many seconds ahead as the file "ahead" has bytes.
CLOCK = r"""
#define _GNU_SOURCE
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{
    struct stat ahead;
    if (clock != CLOCK_MONOTONIC)
        return (int)syscall(SYS_clock_gettime, clock, now);
    now->tv_sec = 1000 + (stat("ahead", &ahead) == 0 ? ahead.st_size : 0);
    now->tv_nsec = 0;
    return 0;
}
"""

SERVE = """
import json, sys
from aoe_fast import Export, Server, Target
from aoe_fast.stats import clients_of
target = Target()
target.set_view(None, {(16, 3): Export(sys.argv[1])})
with Server(target, ["eth0"], spin_us=0) as server:
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(clients_of(server)[0]), flush=True)
"""


@pytest.mark.parametrize(("pause", "lost"), [(15, True), (0, False)])
def test_a_black_hole_as_linux_meets_it_early_on(
    cable: Cable, peer: Peer, tmp_path: Path, pause: int, lost: bool
) -> None:
    """One read sent again each 15 s, each of eight in turn, up to 2 minutes after its first copy.

    A machine that reads again without these pauses, after it was started again, say, gets replies.
    """
    requires("gcc")
    source, library, ahead = (tmp_path / name for name in ("clock.c", "clock.so", "ahead"))
    source.write_text(CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    server = cable.srv.popen(
        ["env", f"LD_PRELOAD={library}", f"PYTHONPATH={ROOT}", sys.executable, "-c", SERVE, "disk"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        for lba in range(0, 128, 16):
            peer.ask(peer.read(lba, 16))
        for number, lba in enumerate(range(0, 128, 16), 1):
            ahead.touch()
            os.truncate(ahead, number * pause or 60)  # at once: the clock never goes back
            peer.ask(peer.read(lba, 16))
        server.stdin.write("?\n")
        server.stdin.flush()
        row = json.loads(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()
    assert row["requests"] == 16
    assert row["mtu_black_hole"] == lost
    # The first one comes after a pause in any case.
    assert row["repeats"] == (8 if lost else 1)


def test_a_lost_link_is_no_black_hole(cable: Cable, peer: Peer, target: Target) -> None:
    with serving(cable, target) as server:
        for _ in range(5):
            peer.ask(peer.read(0, 2))
            peer.ask(peer.read(16, 16))
            time.sleep(0.06)
        assert not client(server, peer.mac)["mtu_black_hole"]
        assert client(server, peer.mac)["repeats"] == 8
