"""The ring that replies leave by: each frame once, whole; what it cannot send is for others."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import aoe_fast.port
from aoe_fast import Export, Target
from aoe_fast.sendring import SendRing, open_send_ring
from tests.aoe_frames import UNC
from tests.aoe_peer import PATIENCE, Peer, serving
from tests.conftest import Cable

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
SLOT = 2048
SLOTS = 128
SECTORS = 2048
LOCAL = 0x88B5  # IEEE 802 Std's own ethertype for experiments: nobody else's frames


def made(number: int, size: int = 200) -> bytes:
    head = b"\x02" * 6 + bytes([2, 0, 0, 0, number >> 8, number & 255]) + LOCAL.to_bytes(2, "big")
    return head + bytes([number % 251]) * (size - len(head))


@pytest.fixture
def wire(cable: Cable) -> Iterator[socket.socket]:
    """All that arrives at the other end."""
    with cable.cli.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    wire.bind(("eth0", LOCAL))
    wire.settimeout(PATIENCE)
    yield wire
    wire.close()


@pytest.fixture
def ring(cable: Cable) -> Iterator[SendRing]:
    with cable.srv.inside():
        ring = SendRing("eth0", SLOT)
    yield ring
    ring.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


def target_of(path: Path) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): Export(path)})
    return target


def test_every_frame_arrives_once_and_whole_however_often_the_ring_goes_round(
    ring: SendRing, wire: socket.socket
) -> None:
    number = 0
    while number < 3 * SLOTS:
        frames = [made(number + i, 60 + 11 * i) for i in range(1 + number % 32)]
        assert ring.put(frames) == len(frames)
        assert [wire.recv(SLOT) for _ in frames] == frames
        number += len(frames)
    wire.setblocking(False)
    with pytest.raises(BlockingIOError):
        wire.recv(SLOT)


def test_what_a_dead_link_refused_never_goes_out_later(
    cable: Cable, ring: SendRing, wire: socket.socket
) -> None:
    for _ in range(3):
        cable.srv.ip("link set eth0 down")
        assert ring.put([made(1), made(2), made(3)]) == 0
        cable.srv.ip("link set eth0 up")
        cable.settle()
        while True:  # the receiver's socket tells once that its link was down
            try:
                wire.setblocking(False)
                wire.recv(SLOT)
                raise AssertionError("a frame that was refused")
            except BlockingIOError:
                break
            except OSError:
                continue
        wire.settimeout(PATIENCE)
        fresh = [made(number) for number in range(100, 132)]
        for turn in range(SLOTS // 32 + 1):
            assert ring.put(fresh) == 32, turn
            assert [wire.recv(SLOT) for _ in fresh] == fresh


def test_a_frame_that_is_too_long_stops_before_it(ring: SendRing, wire: socket.socket) -> None:
    assert ring.put([made(1), made(2, SLOT), made(3)]) == 1
    assert ring.put([made(4)]) == 1
    assert [wire.recv(4096) for _ in range(2)] == [made(1), made(4)]


def test_frames_must_be_bytes_and_few(ring: SendRing) -> None:
    for wrong in ([b""], [made(1)] * 33):
        with pytest.raises(ValueError, match="frames"):
            ring.put(wrong)
    assert ring.put([]) == 0


def test_there_is_none_without_the_interface(cable: Cable) -> None:
    with cable.srv.inside():
        assert open_send_ring("nowhere", SLOT) is None
        held = open_send_ring("eth0", SLOT)
    assert held is not None
    held.close()
    held.close()


def test_a_server_without_one_answers_as_well(
    cable: Cable, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aoe_fast.port, "open_send_ring", lambda interface, slot_bytes: None)
    data = disk.read_bytes()
    peer = Peer(cable)
    with peer.socket, serving(cable, target_of(disk)):
        for lba in range(100):
            assert peer.ask(peer.read(lba)).data == data[lba * 512 : lba * 512 + 1024]
        os.truncate(disk, 4096)
        assert peer.ask(peer.read(SECTORS - 2)).ata_error == UNC


def ask_for_both(peer: Peer) -> None:
    """What is in the image and what is not any more, by turns; more than one batch of it."""
    for tag in range(64):
        peer.send(peer.read(2 if tag % 2 else SECTORS - 2, tag=tag))
    peer.arrived()


def check_both(peer: Peer, data: bytes) -> None:
    for reply in peer.answers(64):
        if reply.tag % 2:
            assert reply.data == data[2 * 512 : 4 * 512]
        else:
            assert (reply.status, reply.ata_error, len(reply.raw)) == (0x41, UNC, 60)


def test_a_batch_with_parts_that_are_gone_is_answered_one_by_one(cable: Cable, disk: Path) -> None:
    data = disk.read_bytes()
    peer = Peer(cable)
    with peer.socket, serving(cable, target_of(disk)) as server:
        (port,) = server.ports
        assert peer.ask(peer.read(SECTORS - 2)).status == 0x40
        port.halt()
        os.truncate(disk, 4096)
        ask_for_both(peer)
        port.start()
        check_both(peer, data)


OWN_HANDLER = textwrap.dedent(
    """
    import signal, sys
    sys.path[:0] = [sys.argv[2]]
    from aoe_fast import Export, Server, Target
    target = Target()
    target.set_view(None, {(16, 3): Export(sys.argv[1])})
    with Server(target, ["eth0"]) as server:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        server.ports[0].halt()
        print("halted", flush=True)
        sys.stdin.readline()
        server.ports[0].start()
        sys.stdin.read()
    """
)


def test_whoever_takes_the_signal_over_has_a_server_that_needs_none(
    cable: Cable, disk: Path
) -> None:
    data = disk.read_bytes()
    peer = Peer(cable)
    server = cable.srv.popen(
        [sys.executable, "-c", OWN_HANDLER, str(disk), str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with peer.socket:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == "halted\n"
        os.truncate(disk, 4096)
        ask_for_both(peer)
        server.stdin.write("\n")
        server.stdin.flush()
        check_both(peer, data)
        server.stdin.close()
    code = server.wait(PATIENCE)
    assert code == 0, signal.Signals(-code).name if code < 0 else code
