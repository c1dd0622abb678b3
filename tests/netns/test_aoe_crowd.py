"""Many clients, greedy ones, storms: nothing lost, nobody starved, bursts spread out."""

import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_fast import AoeError, Export, Server, Target
from aoe_fast.server import ring_sizes
from tests.aoe_frames import BROADCAST, IDENTIFY, Reply, ata, config, frame
from tests.aoe_peer import PATIENCE, Peer, eventually, serving, total
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


def everyone(peer: Peer, count: int) -> list[Reply]:
    """The next ``count`` AoE replies to anybody, which must come; no word that nobody asked for."""
    replies: list[Reply] = []
    while len(replies) < count:
        reply = heard(peer)
        if not is_unasked(reply):
            replies.append(reply)
    return replies


def heard(peer: Peer) -> Reply:
    """The next reply to anybody."""
    end = time.monotonic() + PATIENCE
    while select.select([peer.socket], [], [], max(0, end - time.monotonic()))[0]:
        raw = peer.socket.recv(10000)
        if raw[14] & 8:
            return Reply(raw)
    raise AssertionError("no reply")


def is_unasked(reply: Reply) -> bool:
    """Whether this is what the caretaker tells of the queue depth: it has no tag."""
    return reply.raw[19] == 1 and reply.tag == 0


@pytest.mark.parametrize("subcommand_or_identify", ["config", "identify"])
def test_a_room_discovers_at_once_without_a_loss(
    cable: Cable, peer: Peer, disk: Path, subcommand_or_identify: str
) -> None:
    target = Target()
    export = Export(disk)
    target.set_view(None, {(16, slot): export for slot in range(4)})
    with serving(cable, target, max_clients=500) as server:
        for number in range(500):
            where: dict[str, Any] = {
                "src": station(number),
                "dst": BROADCAST,
                "shelf": 0xFFFF,
                "slot": 0xFF,
            }
            if subcommand_or_identify == "config":
                peer.send(frame(1, config(0), tag=number + 1, **where))
            else:
                peer.send(ata(IDENTIFY, tag=number + 1, **where))
        replies = everyone(peer, 2000)
        assert {(r.tag, r.address[1]) for r in replies} == {
            (number + 1, slot) for number in range(500) for slot in range(4)
        }
        assert total(server, "drops") == total(server, "send_errors") == 0


def test_one_that_asks_for_everything_gets_it_spread(cable: Cable, peer: Peer, disk: Path) -> None:
    target = Target()
    export = Export(disk)
    target.set_view(None, {(16, slot): export for slot in range(200)})
    with serving(cable, target) as server:
        peer.send(frame(1, config(0), src=peer.mac, dst=BROADCAST, shelf=0xFFFF, slot=0xFF))
        replies = everyone(peer, 200)
        assert len({reply.address for reply in replies}) == 200
        before = server.handed_over()[2]
        assert before >= 150
        # Unicast and single answers are never put off.
        assert eventually(lambda: total(server, "spread") == before)  # counted after it was sent
        time.sleep(0.05)  # the last was put off for 20 ms at most
        for dst in (BROADCAST, replies[0].src):
            peer.ask(frame(1, config(0), src=peer.mac, dst=dst))
        peer.send(frame(1, config(0), src=peer.mac, dst=replies[0].src, shelf=0xFFFF, slot=0xFF))
        everyone(peer, 200)
        assert server.handed_over()[2] == before


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
        peer.arrived()
        port.start()
        replies = everyone(peer, 1032)
        assert len({reply.tag for reply in replies}) == 1032, "postponed is not lost"
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
            everyone(peer, 512)
        assert total(server, "postponed") == 0


def test_far_too_many_requests_are_dropped_and_counted(
    cable: Cable, peer: Peer, disk: Path
) -> None:
    with serving(cable, target_of(disk)) as server:
        peer.ask(peer.read(0))
        server.ports[0].halt()
        for tag in range(3000):
            peer.send(peer.read(tag % 1000, tag=tag))
        peer.arrived()
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
        assert called.wait(PATIENCE)
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
        # Nobody asks for more: what comes besides is unsolicited, for each of them.
        told: dict[bytes, list[int]] = {}
        answers = 0
        wanted = {peer.mac, *(station(n) for n in range(100))}
        while answers < 100 or {mac for mac, said in told.items() if said[-1] == 8} != wanted:
            reply = heard(peer)
            if is_unasked(reply):
                told.setdefault(reply.dst, []).append(bufcnt_of(reply))
            else:
                answers += 1
        assert 101 * 8 <= 1024
        assert bufcnt_of(peer.ask(frame(1, config(0), src=peer.mac, dst=BROADCAST))) == 8
        # Once; or with a higher number first, where not all had asked by then.
        for said in told.values():
            assert said == sorted({*said}, reverse=True)
        assert eventually(lambda: total(server, "announced") == sum(map(len, told.values())))


def test_a_greedy_client_is_reminded(cable: Cable, peer: Peer, disk: Path) -> None:
    with serving(cable, target_of(disk)) as server:
        peer.ask(peer.read(0))
        server.ports[0].halt()
        for tag in range(400):
            peer.send(peer.read(tag + 1, tag=tag + 1))
        peer.arrived()
        server.ports[0].start()
        replies = peer.answers(401)
        reminders = [reply for reply in replies if is_unasked(reply)]

        def all_heard() -> bool:
            reminders.extend(filter(is_unasked, peer.drain(0)))
            return total(server, "announced") == len(reminders)

        assert eventually(all_heard)
        # A second one, if the first was said between the first and the last of these.
        assert {bufcnt_of(reply) for reply in reminders} == {64}
        assert len(reminders) <= 2
