"""Durable writes to many exports at once: every one synced and acknowledged, none waits for all."""

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.store import live_backings
from tests.aoe_frames import BROADCAST, UNC, WRITE, ata
from tests.aoe_peer import PATIENCE, Peer, eventually, serving, total
from tests.conftest import Cable, requires

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.netns

EXPORTS = 40
SYNC_THREADS = 12  # as in syncer.pxd


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"disk{n}" for n in range(EXPORTS)]
    for path in paths:
        path.write_bytes(bytes(65536))
    return paths


def target_of_all(disks: list[Path]) -> Target:
    target = Target()
    exports = [Export(path, writable=True) for path in disks]
    target.set_view(None, {(16, slot): export for slot, export in enumerate(exports)})
    for export in exports:
        export.close()
    return target


def test_every_write_to_many_exports_is_acknowledged_after_its_own_sync(
    cable: Cable, disks: list[Path]
) -> None:
    peer = Peer(cable)
    gc.collect()  # what the tests before this one let go of
    before = live_backings()
    target = target_of_all(disks)
    with serving(cable, target) as server:
        asked = 0
        for turn in range(1, 6):
            for slot in range(EXPORTS):
                for lba in range(4):
                    data = bytes([turn]) * 512
                    tag = asked = asked + 1
                    peer.send(
                        ata(WRITE, lba, 1, data=data, src=peer.mac, dst=BROADCAST, slot=slot,
                            tag=tag)
                    )  # fmt: skip
            tags = set()
            for reply in peer.answers(EXPORTS * 4):
                assert reply.status == 0x40
                tags.add(reply.tag)
            assert tags == set(range(asked - EXPORTS * 4 + 1, asked + 1))
            assert all(path.read_bytes()[:2048] == bytes([turn]) * 2048 for path in disks)
        assert EXPORTS * 5 <= total(server, "syncs") <= asked
    # What waited held its export, and let go.
    target.set_view(None, {})
    assert live_backings() <= before
    peer.socket.close()


def test_what_is_written_as_the_server_stops_is_still_acknowledged(
    cable: Cable, disks: list[Path]
) -> None:
    peer = Peer(cable)
    with serving(cable, target_of_all(disks)) as server:
        for slot in range(EXPORTS):
            peer.send(
                ata(WRITE, 1, 1, data=b"s" * 512, src=peer.mac, dst=BROADCAST, slot=slot, tag=slot)
            )
        peer.arrived()
        server.stop()
        assert {reply.tag for reply in peer.answers(EXPORTS)} == set(range(EXPORTS))
    assert all(path.read_bytes()[512:1024] == b"s" * 512 for path in disks)
    peer.socket.close()


def test_the_process_ends_with_sync_threads_idle(cable: Cable, disks: list[Path]) -> None:
    script = """
        import sys
        from aoe_fast import Export, Server, Target
        target = Target()
        target.set_view(None, {(16, 0): Export(sys.argv[1], writable=True)})
        Server(target, ["eth0"]).start()
    """
    done = subprocess.run(
        cable.srv.command([sys.executable, "-c", textwrap.dedent(script), str(disks[0])]),
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Errors as fdatasync(2) tells them: each descriptor of its own of every one, but once. What happens
# meanwhile happens for certain: the first call fails once "fail" is there; the second one, beside
# it, looks before that, finds nothing, and returns when "go" is there. Once "both" is there two
# calls look at the same time. "log" has a line for each call.
BLIND_DISK = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
static atomic_int calls, failures, told[4096], inside;
static int is_there(const char *name) { return access(name, F_OK) == 0; }
int fdatasync(int fd)
{
    int call = calls++, log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(log, "%d\n", fd);
    close(log);
    if (call == 0) {
        while (!is_there("fail")) usleep(1000);
        failures = 1;
    } else if (call == 1) {
        while (!is_there("go")) usleep(1000);
        return 0;
    } else if (is_there("both")) {
        inside++;
        while (inside < 2) usleep(1000);
    }
    if (told[fd] == failures)
        return 0;
    told[fd] = failures;
    return errno = EIO, -1;
}
"""

SERVE_TWICE = """
import sys
from aoe_fast import Export, Server, Target
target = Target()
disks = enumerate(sys.argv[1:], 3)
target.set_view(None, {(16, slot): Export(path, writable=True) for slot, path in disks})
for _ in range(2):
    with Server(target, ["eth0"]):
        print("ready", flush=True)
        sys.stdin.readline()
"""


# Of disk0 the first call fails once "fail" is there, the second waits for "heard", the third for
# "last"; those of other disks wait for "free".
BUSY_DISK = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static atomic_int calls;
static void wait_for(const char *name) { while (access(name, F_OK)) usleep(1000); }
int fdatasync(int fd)
{
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0)
        return -1;
    int ours = !strcmp(strrchr(path, '/'), "/disk0"), call = ours ? calls++ : -1;
    int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    dprintf(log, "%d\n", fd);
    close(log);
    if (call < 3)
        wait_for(call < 0 ? "free" : call == 0 ? "fail" : call == 1 ? "heard" : "last");
    return call ? 0 : (errno = EIO, -1);
}
"""


class BlindDisk:
    """A server of ``disks`` whose syncs are as ``code`` has them, in ``folder``."""

    def __init__(self, cable: Cable, disks: list[Path], folder: Path, code: str) -> None:
        source, library = folder / "blind.c", folder / "blind.so"
        source.write_text(code)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
        self.peer, self.disk, self.folder = Peer(cable), disks[0], folder
        self.server = cable.srv.popen(
            ["env", f"LD_PRELOAD={library}", f"PYTHONPATH={ROOT}", sys.executable, "-c",
             SERVE_TWICE, *map(str, disks)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip

    def close(self) -> None:
        self.server.kill()
        self.server.communicate()
        self.peer.socket.close()

    def ready(self) -> None:
        assert self.server.stdout is not None
        assert self.server.stdout.readline() == "ready\n"

    def again(self) -> None:
        """End the first server, whose threads then do all that they owe; the export stays open."""
        assert self.server.stdin is not None
        self.server.stdin.write("\n")
        self.server.stdin.flush()
        self.ready()

    def syncs(self) -> list[str]:
        """The descriptor of each sync that has begun."""
        log = self.folder / "log"
        return log.read_text().split() if log.exists() else []

    def write(self, tag: int, syncs: int | None = None) -> None:
        """Write sector ``tag``; return when that is applied and so many syncs have begun."""
        data = bytes([tag]) * 512
        self.peer.send(self.peer.write(tag, data, tag=tag))
        place = slice(512 * tag, 512 * tag + 512)
        assert eventually(lambda: self.disk.read_bytes()[place] == data)
        assert syncs is None or eventually(lambda: len(self.syncs()) >= syncs)

    def send_to(self, number: int, tag: int) -> None:
        """Write sector 0 of another disk."""
        data = bytes([tag]) * 512
        self.peer.send(
            ata(WRITE, 0, 1, data=data, src=self.peer.mac, dst=BROADCAST, slot=3 + number, tag=tag)
        )

    def told(self) -> tuple[int, int, int]:
        """Tag, status and error of the next reply."""
        reply = self.peer.receive()
        assert reply is not None
        return reply.tag, reply.status, reply.ata_error


@pytest.fixture
def blind(cable: Cable, disks: list[Path], tmp_path: Path) -> Iterator[BlindDisk]:
    requires("gcc")
    disk = BlindDisk(cable, disks[:1], tmp_path, BLIND_DISK)
    try:
        disk.ready()
        yield disk
    finally:
        disk.close()


@pytest.fixture
def busy(cable: Cable, disks: list[Path], tmp_path: Path) -> Iterator[BlindDisk]:
    """With as many disks as there are sync threads."""
    requires("gcc")
    disk = BlindDisk(cable, disks[:SYNC_THREADS], tmp_path, BUSY_DISK)
    try:
        disk.ready()
        yield disk
    finally:
        disk.close()


def test_two_syncs_of_an_export_run_at_once_and_an_error_fails_what_it_may_have_lost(
    blind: BlindDisk,
) -> None:
    blind.write(1, syncs=1)
    blind.write(2, syncs=2)
    assert len(set(blind.syncs())) == 2
    blind.write(3)  # waits for one of the two
    (blind.folder / "fail").touch()
    assert blind.told() == (1, 0x41, UNC)
    # Written before the first failure was known, like the one whose sync saw nothing.
    assert blind.told() == (3, 0x41, UNC)
    (blind.folder / "go").touch()
    assert blind.told() == (2, 0x41, UNC)


def test_an_error_that_the_sync_beside_it_did_not_see_is_not_told_to_later_writes(
    blind: BlindDisk,
) -> None:
    blind.write(1, syncs=1)
    blind.write(2, syncs=2)
    (blind.folder / "fail").touch()
    assert blind.told() == (1, 0x41, UNC)
    (blind.folder / "go").touch()
    assert blind.told() == (2, 0x41, UNC)
    blind.again()
    before = len(blind.syncs())
    (blind.folder / "both").touch()
    blind.write(4, syncs=before + 1)
    blind.write(5, syncs=before + 2)
    assert len(set(blind.syncs()[before:])) == 2
    assert {blind.told(), blind.told()} == {(4, 0x40, 0), (5, 0x40, 0)}


def test_a_write_that_waits_for_a_thread_as_a_sync_fails_is_synced_after_that(
    busy: BlindDisk,
) -> None:
    """The other descriptor is told of the failure first; nobody else may be at it meanwhile."""
    busy.write(1, syncs=1)
    others = range(1, SYNC_THREADS)
    for slot in others:
        busy.send_to(slot, tag=100 + slot)
    assert eventually(lambda: len(busy.syncs()) == SYNC_THREADS)
    busy.write(2)  # every thread is busy
    (busy.folder / "fail").touch()
    assert eventually(lambda: len(busy.syncs()) == SYNC_THREADS + 1)
    (busy.folder / "free").touch()
    assert {busy.told() for _ in others} == {(100 + slot, 0x40, 0) for slot in others}
    busy.send_to(1, tag=3)  # stands in line behind the one that waits
    assert busy.told() == (3, 0x40, 0)
    (busy.folder / "heard").touch()
    assert busy.told() == (1, 0x41, UNC)
    (busy.folder / "last").touch()
    assert busy.told() == (2, 0x41, UNC)
    busy.write(4)
    assert busy.told() == (4, 0x40, 0)
    assert busy.server.poll() is None
