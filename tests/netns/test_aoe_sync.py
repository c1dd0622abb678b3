"""Durable writes to many exports at once: every one synced and acknowledged, none waits for all."""

import gc
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.store import live_backings
from tests.aoe_frames import BROADCAST, UNC, WRITE, ata
from tests.aoe_peer import Peer, serving, total
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns

EXPORTS = 40


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
            for _ in range(EXPORTS * 4):
                reply = peer.receive()
                assert reply is not None
                assert reply.status == 0x40
                tags.add(reply.tag)
            assert tags == set(range(asked - EXPORTS * 4 + 1, asked + 1))
            assert all(path.read_bytes()[:2048] == bytes([turn]) * 2048 for path in disks)
        assert EXPORTS * 5 <= total(server, "syncs") <= asked
    # What waited held its export, and let go.
    target.set_view(None, {})
    assert live_backings() == before
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
        server.stop()
        tags = set()
        while (reply := peer.receive(0.2)) is not None:
            tags.add(reply.tag)
    assert tags == set(range(EXPORTS))
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
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# fdatasync takes 0.3 s and says where it is; the first one fails.
SLOW_DISK = r"""
#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>
static atomic_int calls;
int fdatasync(int fd)
{
    int call = atomic_fetch_add(&calls, 1);
    (void)fd;
    usleep(300000);
    if (call == 0)
        return errno = EIO, -1;
    return 0;
}
"""

SERVE = """
import sys
from aoe_fast import Export, Server, Target
target = Target()
target.set_view(None, {(16, 3): Export(sys.argv[1], writable=True)})
with Server(target, ["eth0"]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_syncs_of_an_export_run_at_once_and_an_error_fails_what_it_may_have_lost(
    cable: Cable, disks: list[Path], tmp_path: Path
) -> None:
    requires("gcc")
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_DISK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    peer = Peer(cable)
    server = cable.srv.popen(
        ["env", f"LD_PRELOAD={library}", sys.executable, "-c", SERVE, str(disks[0])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    start = time.monotonic()
    # 1 is synced at once, 2 beside it, 3 waits for one of the two.
    for tag in (1, 2, 3):
        peer.send(peer.write(tag, b"w" * 512, tag=tag))
        time.sleep(0.08)
    replies = {}
    for _ in range(3):
        reply = peer.receive(3)
        assert reply is not None
        replies[reply.tag] = (reply.status, reply.raw[25], time.monotonic() - start)
    server.stdin.close()
    server.wait(10)
    peer.socket.close()
    assert replies[1][:2] == (0x41, UNC)
    # Written before the first failure was known.
    assert replies[3][:2] == (0x41, UNC)
    # Not after the first one, but beside it.
    assert replies[2][2] < 0.55
