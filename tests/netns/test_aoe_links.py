"""A server follows its interfaces: down and up, MTU, MAC, gone and back, VLANs, several."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.caretaker import Caretaker
from aoe_fast.linkwatch import changed_links
from pxed.lab.netns import veth
from tests.aoe_frames import BROADCAST, READ, ata, config, frame
from tests.aoe_peer import PATIENCE, Peer, eventually, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


def target_of(path: Path, **options: bool) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): Export(path, writable=bool(options.get("writable")))})
    return target


def sectors(peer: Peer) -> int:
    reply = peer.ask_until(frame(1, config(0), src=peer.mac, dst=BROADCAST))
    return reply.body[4]


def test_an_interface_that_is_named_twice_answers_once(cable: Cable, disk: Path) -> None:
    with serving(cable, target_of(disk), ("eth0", "eth0")) as server:
        assert server.interfaces == ("eth0",)
        peer = Peer(cable)
        for tag in (1, 2):
            peer.send(peer.read(0, tag=tag))
        assert [reply.tag for reply in peer.answers(2)] == [1, 2]


def test_link_down_and_up(cable: Cable, disk: Path) -> None:
    alarms: list[str] = []
    with serving(cable, target_of(disk), alarm=alarms.append):
        peer = Peer(cable)
        for _ in range(3):
            cable.srv.ip("link set eth0 down")
            time.sleep(0.05)
            cable.srv.ip("link set eth0 up")
            assert peer.ask_until(peer.read(0)).status == 0x40
        assert alarms == []


@pytest.mark.parametrize(("before", "after", "most"), [(1500, 9000, 16), (9000, 1500, 2)])
def test_a_new_mtu_is_used_without_a_restart(
    cable: Cable, disk: Path, before: int, after: int, most: int
) -> None:
    for side in (cable.srv, cable.cli):
        side.ip(f"link set eth0 mtu {before}")
    data = disk.read_bytes()
    with serving(cable, target_of(disk, writable=True)) as server:
        peer = Peer(cable)
        assert sectors(peer) != most
        for side in (cable.cli, cable.srv):
            side.ip(f"link set eth0 mtu {after}")
        assert eventually(lambda: server.ports[0].mtu == after and server.ports[0].running)
        assert sectors(peer) == most
        peer.drain()
        assert peer.ask(peer.read(5, most)).data == data[5 * 512 : (5 + most) * 512]
        assert peer.ask(peer.write(5, b"m" * 512 * most)).status == 0x40
    assert disk.read_bytes()[5 * 512 : (5 + most) * 512] == b"m" * 512 * most


def test_an_mtu_without_room_for_a_sector_is_waited_out(cable: Cable, disk: Path) -> None:
    alarms: list[str] = []
    with serving(cable, target_of(disk), alarm=alarms.append) as server:
        cable.srv.ip("link set eth0 mtu 400")
        assert eventually(lambda: not server.ports[0].opened)
        assert eventually(lambda: any("MTU 400 is too small" in text for text in alarms))
        # It is tried again and again, and said once.
        again: list[str] = []
        caretaker = Caretaker(server, again.append)
        with cable.srv.inside():
            for _ in range(3):
                caretaker.follow({"eth0"})
        assert len(again) == 1
        cable.srv.ip("link set eth0 mtu 1500")
        peer = Peer(cable)
        assert peer.ask_until(peer.read(0)).status == 0x40


def test_a_new_mac_is_answered_from(cable: Cable, disk: Path) -> None:
    with serving(cable, target_of(disk)) as server:
        peer = Peer(cable)
        assert peer.ask(peer.read(0)).src == server.ports[0].mac
        new = bytes.fromhex("020000001234")
        cable.srv.ip(f"link set eth0 address {new.hex(':')}")
        assert eventually(lambda: server.ports[0].mac == new and server.ports[0].running)
        assert peer.ask_until(peer.read(0)).src == new


def test_an_mtu_change_loses_no_frame(cable: Cable, disk: Path) -> None:
    """Smaller frames fit the rings that are there: they go on receiving all the while."""
    for side in (cable.srv, cable.cli):
        side.ip("link set eth0 mtu 2000")
    enough = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        mtu = 1500
        while not enough.is_set():
            cable.srv.ip(f"link set eth0 mtu {mtu}")
            mtu = 3500 - mtu
            changes += 1

    with serving(cable, target_of(disk)):
        peer = Peer(cable)
        changer = threading.Thread(target=change)
        changer.start()
        try:
            while changes < 200:
                for tag in range(16):
                    peer.send(peer.read(tag, tag=tag))
                peer.answers(16)
        finally:
            enough.set()
            changer.join()


def test_an_interface_that_goes_and_comes_back(cable: Cable, disk: Path) -> None:
    veth(cable.srv, "eth1", cable.cli, "eth1")
    alarms: list[str] = []
    target = target_of(disk, writable=True)
    with serving(cable, target, ("eth0", "eth1"), workers=2, alarm=alarms.append) as server:
        for _ in range(3):
            peer = Peer(cable, interface="eth1")
            assert peer.ask_until(peer.read(0)).status == 0x40
            assert peer.ask_until(peer.write(9, b"v" * 512)).status == 0x40
            peer.socket.close()
            cable.srv.ip("link del eth1")
            assert eventually(lambda: not server.ports[1].opened)
            other = Peer(cable)
            assert other.ask(other.read(0)).status == 0x40, "eth0 was disturbed"
            other.socket.close()
            veth(cable.srv, "eth1", cable.cli, "eth1")
        assert eventually(lambda: server.ports[1].running)
        assert alarms.count("eth1 is gone: waiting for it to come back") == 3


def test_a_card_with_another_name_is_served_no_longer(cable: Cable, disk: Path) -> None:
    """The kernel has its news under the new name then; the old one may become another card's."""
    alarms: list[str] = []
    with serving(cable, target_of(disk), alarm=alarms.append) as server:
        peer = Peer(cable)
        for _ in range(3):
            assert peer.ask_until(peer.read(0)).status == 0x40
            cable.srv.ip("link set eth0 down")
            time.sleep(0.1)  # what is said of this is heard under its old name
            cable.srv.ip("link set eth0 name lan7", "link set lan7 up")
            assert eventually(lambda: not server.ports[0].opened)
            cable.srv.ip("link set lan7 down", "link set lan7 name eth0", "link set eth0 up")
        assert peer.ask_until(peer.read(0)).status == 0x40
        assert alarms.count("eth0 is gone: waiting for it to come back") == 3


def add_subinterface(cable: Cable, kind: str, *, both: bool = True) -> None:
    for side in (cable.srv, cable.cli) if both else (cable.srv,):
        try:
            side.ip(f"link add link eth0 name eth0.5 type {kind}", "link set eth0.5 up")
        except subprocess.CalledProcessError:
            pytest.skip(f"this kernel has no {kind.split()[0]}")


@pytest.mark.parametrize("kind", ["vlan id 5", "macvlan"])
def test_a_subinterface_that_goes_and_comes_back(cable: Cable, disk: Path, kind: str) -> None:
    add_subinterface(cable, kind)
    with serving(cable, target_of(disk), ("eth0.5",)) as server:
        peer = Peer(cable, interface="eth0.5")
        assert peer.ask_until(peer.read(0)).status == 0x40
        if kind != "macvlan":
            untagged = Peer(cable)
            untagged.send(untagged.read(0))
            assert untagged.receive(0.1) is None
        cable.srv.ip("link del eth0.5")
        assert eventually(lambda: not server.ports[0].opened)
        add_subinterface(cable, kind, both=False)
        assert peer.ask_until(peer.read(0)).status == 0x40


def test_card_and_vlan_side_by_side(cable: Cable, disk: Path) -> None:
    add_subinterface(cable, "vlan id 5")
    with serving(cable, target_of(disk), ("eth0", "eth0.5")) as server:
        for name in ("eth0", "eth0.5"):
            peer = Peer(cable, interface=name)
            assert peer.ask_until(peer.read(0)).status == 0x40
            # When this is answered all that was asked before it has been, and the link carries.
            assert peer.ask(peer.read(0, tag=2)).status == 0x40
            peer.drain()
            before = total(server, "frames")
            assert peer.ask(peer.read(0)).status == 0x40
            assert peer.drain() == [], "answered twice"
            assert total(server, "frames") == before + 1
            peer.socket.close()


@pytest.mark.parametrize(
    ("tag", "answered"), [(7, False), (0xE007, False), (0, True), (0xE000, True)]
)
def test_another_vlans_request_is_not_answered(
    cable: Cable, disk: Path, tag: int, answered: bool
) -> None:
    """Without an interface for its VLAN it reaches the card; VLAN 0 is only a priority."""
    with serving(cable, target_of(disk, writable=True)):
        peer = Peer(cable)
        for request in (peer.read(0), peer.write(0, b"!" * 512)):
            peer.send(request[:12] + b"\x81\0" + tag.to_bytes(2, "big") + request[12:])
            assert (peer.receive(PATIENCE if answered else 0.1) is not None) == answered
        assert peer.ask(peer.read(0)).status == 0x40
    assert (disk.read_bytes()[:512] == b"!" * 512) == answered


def test_a_server_may_start_only_when_its_interfaces_are_there(cable: Cable, disk: Path) -> None:
    with (
        pytest.raises(Exception, match="no interface 'eth9'"),
        serving(cable, target_of(disk), ("eth0", "eth9")),
    ):
        pass


@pytest.mark.parametrize("cut", [0, 4, 15, 17, 40, 1000])
def test_damaged_netlink_messages_are_no_trouble(cut: int) -> None:
    message = bytes.fromhex("30000000100000000000000000000000") + bytes(16)
    message += b"\x09\0\x03\0eth0\0" + bytes(3) + b"\x03\0\x03\0"
    message = len(message).to_bytes(4, "little") + message[4:]
    found = changed_links(message[:cut])
    assert found == ({"eth0"} if cut > len(message) else set())


def test_one_address_on_two_interfaces_is_said_once(cable: Cable, tmp_path: Path) -> None:
    veth(cable.srv, "eth1", cable.cli, "eth1")
    disk = tmp_path / "both.img"
    disk.write_bytes(bytes(1 << 20))
    target = Target()
    target.set_view(None, {(16, 3): Export(disk)})
    mac, other = bytes([2, 0, 0, 0, 0, 0x77]), bytes([2, 0, 0, 0, 0, 0x78])
    alarms: list[str] = []
    with serving(cable, target, ("eth0", "eth1"), alarm=alarms.append):
        first, second = Peer(cable, mac), Peer(cable, mac, "eth1")
        assert Peer(cable, other).ask(ata(READ, 0, 1, src=other, dst=BROADCAST)).status == 0x40

        def both() -> bool:
            for peer in (first, second):
                peer.send(peer.read(0))
            return bool(alarms)

        assert eventually(both)
        for _ in range(2):
            both()
            time.sleep(1)
    assert len(alarms) == 1
    assert mac.hex(":") in alarms[0]
    assert "eth0" in alarms[0]
    assert "eth1" in alarms[0]
