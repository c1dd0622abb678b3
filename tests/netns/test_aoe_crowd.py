"""Many clients, greedy ones, storms: nothing lost, nobody starved, bursts spread out."""

import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import AoeError, Export, Server, Target
from aoe_fast.server import ring_sizes
from tests.aoe_frames import BROADCAST, IDENTIFY, Reply, ata, config, frame
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def peer(cable: Cable) -> Iterator[Peer]:
    cable.cli.ip("link set eth0 promisc on")
    peer = Peer(cable)
    yield peer
    peer.socket.close()


def target_of(path: Path, bufcnt: int = 64) -> Target:
    target = Target(bufcnt=bufcnt)
    target.set_view(None, {(16, 3): Export(path)})
    return target


def station(number: int) -> bytes:
    return b"\x02\0\0\1" + struct.pack(">H", number)


def everyone(peer: Peer, count: int, seconds: float = 5) -> list[Reply]:
    """The next ``count`` AoE replies to anybody."""
    replies: list[Reply] = []
    end = time.monotonic() + seconds
    while len(replies) < count and time.monotonic() < end:
        raw = peer.socket.recv(10000)
        if raw[14] & 8:
            replies.append(Reply(raw))
    return replies


@pytest.mark.parametrize("subcommand_or_identify", ["config", "identify"])
def test_a_room_discovers_at_once_without_a_loss(
    cable: Cable, peer: Peer, disk: Path, subcommand_or_identify: str
) -> None:
    target = Target()
    export = Export(disk)
    target.set_view(None, {(16, slot): export for slot in range(4)})
    with serving(cable, target, max_clients=500) as server:
        for number in range(500):
            where = {"src": station(number), "dst": BROADCAST, "shelf": 0xFFFF, "slot": 0xFF}
            if subcommand_or_identify == "config":
                peer.send(frame(1, config(0), tag=number, **where))  # type: ignore[arg-type]
            else:
                peer.send(ata(IDENTIFY, tag=number, **where))  # type: ignore[arg-type]
        replies = everyone(peer, 2000)
        assert {(r.tag, r.address[1]) for r in replies} == {
            (number, slot) for number in range(500) for slot in range(4)
        }
        assert total(server, "drops") == total(server, "send_errors") == 0


def test_one_that_asks_for_everything_gets_it_spread(cable: Cable, peer: Peer, disk: Path) -> None:
    target = Target()
    export = Export(disk)
    target.set_view(None, {(16, slot): export for slot in range(200)})
    with serving(cable, target) as server:
        start = time.monotonic()
        peer.send(frame(1, config(0), src=peer.mac, dst=BROADCAST, shelf=0xFFFF, slot=0xFF))
        replies = everyone(peer, 200)
        assert time.monotonic() - start < 0.5
        assert len({reply.address for reply in replies}) == 200
        assert eventually(lambda: total(server, "spread") >= 150)
        # Unicast and single answers are never put off.
        before = -1
        while (now := total(server, "spread")) != before:  # it is counted after it was sent
            before = now
            time.sleep(0.2)
        for dst in (BROADCAST, replies[0].src):
            peer.ask(frame(1, config(0), src=peer.mac, dst=dst))
        peer.send(frame(1, config(0), src=peer.mac, dst=replies[0].src, shelf=0xFFFF, slot=0xFF))
        assert len(everyone(peer, 200)) == 200
        assert total(server, "spread") == before


def test_a_long_config_string_survives_being_put_off(cable: Cable, peer: Peer, disk: Path) -> None:
    from aoe_fast.admin import write_settings

    export = Export(disk)
    write_settings(export, config=b"c" * 1024)
    target = Target()
    target.set_view(None, {(16, slot): export for slot in range(60)})
    with serving(cable, target):
        peer.send(frame(1, config(0), src=peer.mac, dst=BROADCAST, shelf=0xFFFF, slot=0xFF))
        assert all(reply.text == b"c" * 1024 for reply in everyone(peer, 60))


def test_a_greedy_client_waits_for_itself(cable: Cable, peer: Peer, disk: Path) -> None:
    """1,000 requests of one, then one of another, all in the ring before anybody is served."""
    with serving(cable, target_of(disk)) as server:
        for src in (peer.mac, station(1)):
            peer.send(ata(0x20, 0, 1, src=src, dst=BROADCAST))
        assert len(everyone(peer, 2)) == 2
        port = server.ports[0]
        port.halt()
        for tag in range(1000):
            peer.send(peer.read(tag, tag=tag))
        for tag in range(32):
            peer.send(ata(0x20, tag, 1, src=station(1), dst=BROADCAST, tag=5000 + tag))
        port.start()
        replies = everyone(peer, 1032)
        assert len(replies) == 1032, "postponed is not lost"
        places = [at for at, reply in enumerate(replies) if reply.tag >= 5000]
        # Twice its queue depth and a little is what the greedy one may have before.
        assert max(places) < 2 * 64 + 16 + 32 + 32
        assert total(server, "postponed") == 1000 - 2 * 64 - 16
        assert total(server, "drops") == 0


def test_a_client_within_its_depth_is_never_postponed(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk)) as server:
        for _ in range(20):
            for number in range(8):
                for tag in range(64):
                    request = ata(0x20, tag, 1, src=station(number), dst=BROADCAST, tag=tag)
                    peer.send(request)
            assert len(everyone(peer, 512)) == 512
        assert total(server, "postponed") == 0


def test_far_too_many_requests_are_dropped_and_counted(
    cable: Cable, peer: Peer, disk: Path
) -> None:
    with serving(cable, target_of(disk)) as server:
        peer.ask(peer.read(0))
        server.ports[0].halt()
        for tag in range(3000):
            peer.send(peer.read(tag % 1000, tag=tag))
        server.ports[0].start()
        assert eventually(lambda: total(server, "frames") + total(server, "overrun") >= 3001)
        assert total(server, "overrun") > 0


# Ring sizes and the advertised depth.


def test_ring_sizes_hold_every_clients_queue() -> None:
    for clients, bufcnt, workers in ((1, 64, 1), (500, 64, 1), (500, 64, 2), (1000, 128, 4)):
        frames, writes = ring_sizes(clients, bufcnt, workers)
        assert frames * workers >= clients * bufcnt
        assert frames & (frames - 1) == 0
        assert writes <= frames


@pytest.mark.parametrize(("clients", "words"), [(0, "use 1 to"), (60000, "lower bufcnt")])
def test_ring_sizes_that_cannot_be(clients: int, words: str) -> None:
    with pytest.raises(AoeError, match=words):
        Server(Target(), ["eth0"], max_clients=clients)


def test_lost_frames_raise_the_alarm(cable: Cable, peer: Peer, disk: Path) -> None:
    alarms: list[str] = []
    with serving(cable, target_of(disk), ring_frames=64, alarm=alarms.append) as server:
        server.ports[0].halt()
        for tag in range(3000):
            peer.send(peer.read(0, tag=tag))
        server.ports[0].start()
        assert eventually(lambda: any("frames lost" in text for text in alarms))
        assert total(server, "drops") > 0


def test_an_alarm_that_fails_harms_nobody(cable: Cable, peer: Peer, disk: Path) -> None:
    called = threading.Event()

    def alarm(text: str) -> None:
        called.set()
        raise RuntimeError(text)

    with serving(cable, target_of(disk), ring_frames=64, alarm=alarm) as server:
        server.ports[0].halt()
        for tag in range(3000):
            peer.send(peer.read(0, tag=tag))
        server.ports[0].start()
        assert called.wait(5)
        peer.drain()
        assert peer.ask_until(peer.read(0)).status == 0x40


def bufcnt_of(reply: Reply) -> int:
    return int.from_bytes(reply.body[0:2], "big")


def test_under_pressure_clients_are_told_a_smaller_queue(
    cable: Cable, peer: Peer, disk: Path
) -> None:
    with serving(cable, target_of(disk), ring_frames=1024) as server:
        assert bufcnt_of(peer.ask(frame(1, config(0), src=peer.mac, dst=BROADCAST))) == 64
        for number in range(100):
            peer.send(ata(0x20, 0, 1, src=station(number), dst=BROADCAST))
        assert len(everyone(peer, 100)) == 100
        # Nobody asks now: what comes is unsolicited, for each of them.
        told = everyone(peer, 101, 4)
        assert {reply.dst for reply in told} == {peer.mac, *(station(n) for n in range(100))}
        assert {bufcnt_of(reply) for reply in told} == {8}
        assert 101 * 8 <= 1024
        assert bufcnt_of(peer.ask(frame(1, config(0), src=peer.mac, dst=BROADCAST))) == 8
        assert eventually(lambda: total(server, "announced") == 101)


def test_a_greedy_client_is_reminded(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk)) as server:
        peer.ask(peer.read(0))
        server.ports[0].halt()
        for tag in range(400):
            peer.send(peer.read(tag, tag=tag))
        server.ports[0].start()
        assert eventually(lambda: total(server, "announced") == 1)
        reminders = [reply for reply in peer.drain() if reply.raw[19] == 1]
        assert [bufcnt_of(reply) for reply in reminders] == [64]
