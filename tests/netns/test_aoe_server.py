"""Server on a real link: data, durability, faults, views under load, and no need of the GIL."""

import os
import re
import select
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_fast import AoeError, Export, Server, Target
from tests.aoe_frames import (
    BROADCAST,
    FLUSH,
    IDENTIFY,
    READ,
    UNC,
    ata,
    config,
    frame,
)
from tests.aoe_peer import PATIENCE, Peer, eventually, serving, total
from tests.conftest import WITHOUT_PRIVILEGE, Cable, requires

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
SECTORS = 2048


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.fixture
def peer(cable: Cable) -> Iterator[Peer]:
    peer = Peer(cable)
    yield peer
    peer.socket.close()


def target_of(path: Path, **options: Any) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): Export(path, **options)})
    return target


def test_reads_the_right_data(cable: Cable, peer: Peer, disk: Path) -> None:
    data = disk.read_bytes()
    with serving(cable, target_of(disk)) as server:
        for lba in range(0, SECTORS - 1, 97):
            reply = peer.ask(peer.read(lba))
            assert reply.status == 0x40
            assert reply.data == data[lba * 512 : lba * 512 + 1024]
        asked = len(range(0, SECTORS - 1, 97))
        server.stop()
        assert total(server, "frames") == total(server, "replies") == asked


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_client_is_answered_once_by_any_number_of_workers(
    cable: Cable, disk: Path, workers: int
) -> None:
    data = disk.read_bytes()
    cable.cli.ip("link set eth0 promisc on")
    with serving(cable, target_of(disk, writable=True), workers=workers) as server:
        for n in range(8):
            peer = Peer(cable, mac=bytes([2, 0, 0, 0, 7, n]))
            assert peer.ask(peer.read(n)).data == data[n * 512 : n * 512 + 1024]
            assert peer.ask(peer.write(n + 100, b"w" * 512)).status == 0x40
            assert peer.receive(0.02) is None
            peer.socket.close()
        server.stop()
        assert total(server, "frames") == 16
        assert sum(server.counters["frames"] > 0) == workers


def test_many_outstanding(cable: Cable, peer: Peer, disk: Path) -> None:
    data = disk.read_bytes()
    with serving(cable, target_of(disk)) as server:
        for tag in range(1000):
            peer.send(peer.read(tag, tag=tag))
        seen = set()
        for reply in peer.answers(1000):
            assert reply.data == data[reply.tag * 512 : reply.tag * 512 + 1024]
            seen.add(reply.tag)
        assert seen == set(range(1000))
        assert total(server, "drops") == 0


def test_jumbo_frames(cable: Cable, disk: Path) -> None:
    for side in (cable.srv, cable.cli):
        side.ip("link set eth0 mtu 9000")
    peer = Peer(cable)
    data = disk.read_bytes()
    with serving(cable, target_of(disk, writable=True)):
        described = peer.ask(frame(1, config(0), src=peer.mac, dst=BROADCAST))
        assert described.body[4] == 16
        assert peer.ask(peer.read(3, 16)).data == data[3 * 512 : 19 * 512]
        assert peer.ask(peer.write(5, b"j" * 8192)).status == 0x40
    assert disk.read_bytes()[5 * 512 : 21 * 512] == b"j" * 8192
    peer.socket.close()


@pytest.mark.parametrize("durability", ["durable", "writeback"])
def test_an_acknowledged_write_is_in_the_file(
    cable: Cable, peer: Peer, disk: Path, durability: str
) -> None:
    with serving(cable, target_of(disk, writable=True, durability=durability)) as server:
        start = time.monotonic()
        reply = peer.ask(peer.write(7, b"x" * 1024))
        assert (reply.status, len(reply.raw)) == (0x40, 60)
        assert disk.read_bytes()[7 * 512 : 9 * 512] == b"x" * 1024
        synced = total(server, "syncs")
        if time.monotonic() - start < 4:  # what is written back is so some seconds later
            assert synced == (durability == "durable")
        server.stop()
        assert total(server, "syncs") == 1


def test_durable_writes_share_a_sync(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk, writable=True)) as server:
        server.ports[0].halt()
        for tag in range(500):
            peer.send(peer.write(tag, bytes([tag % 251]) * 512, tag=tag))
        peer.arrived()
        server.ports[0].start()
        assert {reply.tag for reply in peer.answers(500)} == set(range(500))
        assert total(server, "syncs") < 100
    data = disk.read_bytes()
    assert all(data[tag * 512] == tag % 251 for tag in range(500))


def test_one_clients_overlapping_writes_keep_their_order(
    cable: Cable, peer: Peer, disk: Path
) -> None:
    with serving(cable, target_of(disk, writable=True), workers=2):
        for tag in range(300):
            peer.send(peer.write(0, bytes([tag % 256]) * 512, tag=tag))
        peer.answers(300)
    assert disk.read_bytes()[:512] == bytes([299 % 256]) * 512


def test_flush_is_a_sync(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk, writable=True, durability="writeback")) as server:
        assert peer.ask(ata(FLUSH, src=peer.mac, dst=BROADCAST)).status == 0x40
        assert eventually(lambda: total(server, "syncs") == 1)


def test_a_truncated_image_fails_its_requests_alone(cable: Cable, peer: Peer, disk: Path) -> None:
    data = disk.read_bytes()
    with serving(cable, target_of(disk)) as server:
        with disk.open("r+b") as file:
            file.truncate(512 * 1024)
        for tag in range(64):
            peer.send(peer.read(0 if tag % 2 else SECTORS - 2, tag=tag))
        for reply in peer.answers(64):
            if reply.tag % 2:
                assert reply.data == data[:1024]
            else:
                assert (reply.status, reply.ata_error, len(reply.raw)) == (0x41, UNC, 60)
        assert total(server, "ata_errors") == 32
        assert total(server, "send_errors") == 0


def test_survives_the_link_going_down_and_up(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk, writable=True), workers=2):
        assert peer.ask(peer.read(0)).status == 0x40
        for _ in range(3):
            cable.srv.ip("link set eth0 down")
            time.sleep(0.05)
            cable.srv.ip("link set eth0 up")
            assert peer.ask_until(peer.read(0)).status == 0x40
            assert peer.ask(peer.write(3, b"u" * 512)).status == 0x40


def test_a_down_interface_costs_no_cpu(cable: Cable, disk: Path) -> None:
    with serving(cable, target_of(disk)):
        cable.srv.ip("link set eth0 down")
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2


def test_an_idle_server_costs_no_cpu(cable: Cable, peer: Peer, disk: Path) -> None:
    """It spins for a moment after a request and then sleeps."""
    with serving(cable, target_of(disk), spin_us=1000) as server:
        peer.ask(peer.read(0))
        time.sleep(0.1)
        before, spun = time.process_time(), int(total(server, "spin_ns"))
        time.sleep(0.5)
        assert time.process_time() - before < 0.2
        assert int(total(server, "spin_ns")) - spun <= 10_000_000


def test_ignored_frames_are_counted_by_reason(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk)) as server:
        peer.send(peer.read(0)[:30])
        peer.send(ata(READ, 0, 1, src=b"\x01" + peer.mac[1:], dst=BROADCAST))
        peer.send(ata(READ, 0, 1, src=peer.mac, dst=BROADCAST, slot=9))
        assert eventually(lambda: total(server, "ignored") == 3)
        assert peer.receive(0.2) is None
        counted = {name: total(server, name) for name in ("runt", "group_source", "not_ours")}
        assert counted == {"runt": 1, "group_source": 1, "not_ours": 1}
        assert total(server, "ignored") == total(server, "frames") == 3


def test_swapping_views_under_load_loses_nothing(cable: Cable, peer: Peer, tmp_path: Path) -> None:
    exports = []
    for n in range(2):
        (tmp_path / f"{n}").write_bytes(bytes([n + 1]) * 8192)
        exports.append(Export(tmp_path / f"{n}"))
    target = Target()
    target.set_view(peer.mac, {(16, 3): exports[0]})
    enough = threading.Event()
    swapped = 0

    def swap() -> None:
        nonlocal swapped
        while swapped < 1000 or not enough.is_set():
            target.set_view(peer.mac, {(16, 3): exports[swapped % 2]})
            swapped += 1
            time.sleep(0.0002)

    with serving(cable, target) as server:
        swapper = threading.Thread(target=swap)
        swapper.start()
        asked = 0
        contents: set[int] = set()
        while asked < 16000 or contents != {1, 2}:
            for tag in range(16):
                peer.send(peer.read(0, tag=tag))
            for reply in peer.answers(16):
                assert len(set(reply.data)) == 1
                contents.add(reply.data[0])
            asked += 16
        enough.set()
        swapper.join()
        assert swapped >= 1000
        assert total(server, "not_ours") == 0


def test_a_dropped_view_is_gone_when_the_call_returns(cable: Cable, peer: Peer, disk: Path) -> None:
    target = Target()
    export = Export(disk)
    with serving(cable, target) as server:
        for number in range(50):
            target.set_view(peer.mac, {(16, 3): export})
            assert peer.ask(peer.read(0)).status == 0x40
            target.drop_view(peer.mac)
            peer.send(peer.read(0))
            assert eventually(lambda n=number: total(server, "frames") == 2 * n + 2)
            assert peer.receive(0.01) is None
            assert eventually(lambda n=number: total(server, "not_ours") == n + 1)


def test_stopping_answers_what_has_arrived(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk, writable=True)) as server:
        for tag in range(200):
            peer.send(peer.write(tag, b"s" * 512, tag=tag))
        peer.arrived()
        server.stop()
        server.stop()
        assert not server.running
        assert {reply.tag for reply in peer.answers(200)} == set(range(200))


def test_a_stopped_server_starts_again(cable: Cable, peer: Peer, disk: Path) -> None:
    target = target_of(disk)
    server = Server(target, ["eth0"])
    for _ in range(3):
        with cable.srv.inside():
            server.start()
        assert peer.ask(peer.read(0)).status == 0x40
        server.stop()
        peer.send(peer.read(0))
        assert peer.receive(0.05) is None


def test_no_such_interface(cable: Cable) -> None:
    server = Server(Target(), ["eth7"])
    with cable.srv.inside(), pytest.raises(AoeError, match=r"no interface 'eth7'.*eth0"):
        server.start()
    assert not server.running


def test_no_privilege(cable: Cable) -> None:
    code = (
        "from aoe_fast import *\n"
        "try: Server(Target(), ['eth0']).start()\n"
        "except AoeError as error: print(error)\n"
    )
    done = cable.srv.run([*WITHOUT_PRIVILEGE, sys.executable, "-c", code])
    assert "run as root" in done.stdout


# No need of the GIL.

HOLDER = textwrap.dedent(
    """
    import ctypes, sys, time
    sys.path[:0] = [sys.argv[2]]
    from aoe_fast import Export, Server, Target
    target = Target()
    target.set_view(None, {(16, 3): Export(sys.argv[1], writable=True)})
    with Server(target, ["eth0"]):
        print("holding", flush=True)
        ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)  # PyDLL keeps the GIL
        print("let go", flush=True)
        sys.stdin.read()
    """
)


def test_workers_serve_while_another_thread_holds_the_gil(
    cable: Cable, peer: Peer, disk: Path
) -> None:
    server = cable.srv.popen(
        [sys.executable, "-c", HOLDER, str(disk), str(ROOT)],
        stdout=subprocess.PIPE,
        stderr=None,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    assert server.stdout.readline() == "holding\n"
    for lba in range(200):
        assert peer.ask(peer.read(lba)).status == 0x40
        assert peer.ask(peer.write(lba, b"g" * 512)).status == 0x40
    assert not select.select([server.stdout], [], [], 0)[0], "the GIL was let go too early"
    server.stdin.write("\n")
    server.stdin.flush()
    assert server.stdout.readline() == "let go\n"
    server.stdin.close()
    assert server.wait(PATIENCE) == 0


HOT = {
    "target": ["handle", "answer"],
    "ata": ["answer_ata", "identify"],
    "settings": ["answer_config", "answer_mask", "answer_reserve", "allows"],
    "batch": ["fail_ata", "put_data"],
    "ring": ["ring_peek", "ring_pop", "ring_holds"],
    "pauses": ["pause_is_worth", "pause_for_more"],
    "outbox": ["outbox_add", "outbox_send"],
    "sendring": ["send_ring_put", "put_run"],
    "guard": ["is_guarded", "guarded_gather"],
    "worker": ["worker_loop", "serve_batch"],
    "line": ["line_put", "line_wake", "line_wait", "keep_late", "put_late"],
    "residency": ["look_at"],
    "mapped": ["put_write"],
    "observe": ["is_greedy", "note_frame", "note_sent"],
    "clients": ["find_client", "enter_client"],
    "backlog": ["postpone", "next_postponed"],
    "spread": ["put_off", "spread_loop"],
    "fetch": ["hand_over", "fetch_loop", "serve"],
    "parking": ["park", "parking_loop", "apply"],
    "syncer": ["defer", "mark_dirty", "sync_loop", "commit"],
    "transfer": ["machine_receive", "machine_expire", "lay_out"],
    "mover": ["hall_loop", "serve"],
    "outlet": ["send_blocks", "send_many"],
    "store": ["backing_write", "backing_sync", "backing_release"],
}


@pytest.mark.parametrize(("module", "function"), [(m, f) for m in HOT for f in HOT[m]])
def test_the_generated_c_of_the_data_path_knows_no_gil(module: str, function: str) -> None:
    source = ROOT / "aoe_fast" / f"{module}.c"
    if not source.exists():
        pytest.skip("no generated C here: built elsewhere")
    name = rf"__pyx_f_8aoe_fast_{len(module)}{module}_{function}"
    body = re.search(
        rf"^static [^;\n]*\b{name}\([^;]*?\) \{{\n(.*?)^\}}", source.read_text(), re.M | re.S
    )
    assert body, f"{name} is not in {source.name}"
    assert not re.search(r"PyGILState|PyObject|Py_[A-Z]+REF|__Pyx_Raise", body[1])


# Real peers.


def test_aoeping(cable: Cable, disk: Path) -> None:
    requires("aoeping")
    with serving(cable, target_of(disk, serial="SEAT")):
        done = cable.cli.run(["aoeping", "-s", "50", "-I", "16", "3", "eth0"], check=False)
    assert done.returncode == 0, done.stderr
    assert "SEAT" in done.stdout


def test_aoecfg(cable: Cable, disk: Path) -> None:
    requires("aoecfg")
    target = Target(wire_config=True)
    target.set_view(None, {(16, 3): Export(disk)})

    def aoecfg(command: str, text: str, seconds: int = 50) -> str:
        argv = ["aoecfg", "-c", command, "-s", text, "-t", str(seconds), "16", "3", "eth0"]
        return cable.cli.run(argv, check=False).stdout

    with serving(cable, target):
        assert "seat-01" in aoecfg("set", "seat-01")
        assert "seat-01" in aoecfg("read", "")
        assert aoecfg("test", "seat-02", 1) == ""
        assert "seat-01" in aoecfg("prefix", "seat")
        assert "seat-02" in aoecfg("fset", "seat-02")


@pytest.mark.parametrize(("mtu", "payload"), [(1500, 1024), (9000, 8192)])
def test_aoe_sancheck(cable: Cable, disk: Path, mtu: int, payload: int) -> None:
    """It finds every device, one path to each, and the payload that the MTU has room for."""
    requires("aoe-sancheck")
    for side in (cable.srv, cable.cli):
        side.ip(f"link set eth0 mtu {mtu}")
    target = Target()
    target.set_view(None, dict.fromkeys([(16, 3), (16, 4)], Export(disk)))
    wanted = [[f"e16.{slot}", "1", str(payload), "eth0"] for slot in (3, 4)]
    rows: list[list[str]] = []

    def check() -> bool:
        shown = cable.cli.run(["aoe-sancheck", "eth0"]).stdout
        rows[:] = [line.split() for line in shown.splitlines() if line.startswith("e16.")]
        return rows == wanted

    with serving(cable, target):
        assert eventually(check), rows  # it waits for some seconds only


def test_identify_over_the_wire(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk)):
        reply = peer.ask(ata(IDENTIFY, src=peer.mac, dst=BROADCAST))
        assert len(reply.data) == 512
