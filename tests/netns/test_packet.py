"""What raw sockets hear: this segment's frames for us and for all, and nobody else's."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.mac import mac_bytes
from pxed.net import icmpv6
from pxed.net.dhcp import DhcpServer
from pxed.net.link import look_up
from pxed.net.packet import ETH_ARP, ETH_IPV6, Instruction, arp_probe, open_raw
from pxed.net.thread import LoopThread
from tests.aoe_peer import PATIENCE
from tests.conftest import Cable

pytestmark = pytest.mark.netns
THEIRS, EVERYBODY = bytes.fromhex("020000000077"), b"\xff" * 6
END = arp_probe(THEIRS, IPv4Address("10.77.0.99"))


@contextmanager
def heard(
    cable: Cable, program: tuple[Instruction, ...], ethertype: int
) -> Iterator[socket.socket]:
    with cable.srv.inside():
        raw = open_raw(look_up("eth0"), ethertype, program)
    try:
        yield raw
    finally:
        raw.close()


def say(cable: Cable, *frames: bytes) -> None:
    with cable.cli.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("eth0", 0))
        for frame in frames:
            sender.send(frame)


def arrived(raw: socket.socket, last: bytes) -> list[bytes]:
    """All frames of this test up to ``last``, which must come; the kernel sends some of its own."""
    raw.settimeout(PATIENCE)
    found: list[bytes] = []
    while not found or found[-1] != last:
        frame = raw.recv(2048)
        if frame[6:12] == THEIRS:
            found.append(frame)
    return found


def tagged(frame: bytes, tag: int) -> bytes:
    return frame[:12] + b"\x81\0" + tag.to_bytes(2, "big") + frame[12:]


def test_another_vlans_frames_do_not_come(cable: Cable) -> None:
    probe = arp_probe(THEIRS, IPv4Address("10.77.0.50"))
    with heard(cable, (), ETH_ARP) as raw:
        say(cable, tagged(probe, 7), tagged(probe, 0xE007), END)
        assert arrived(raw, END) == [END]
        say(cable, tagged(probe, 0), END)  # VLAN 0 is none, only a priority
        assert arrived(raw, END) == [probe, END]


def test_frames_to_another_host_do_not_come(cable: Cable) -> None:
    """A card in promiscuous mode, below a bridge or a capture."""
    cable.srv.ip("link set eth0 promisc on")
    with cable.srv.inside():
        own = mac_bytes(look_up("eth0").mac)
    probe = arp_probe(THEIRS, IPv4Address("10.77.0.50"))
    with heard(cable, (), ETH_ARP) as raw:
        say(cable, THEIRS[:5] + b"\x99" + probe[6:], own + probe[6:], END)
        assert arrived(raw, END) == [own + probe[6:], END]


def test_a_filter_of_its_own_is_kept_beside_that(cable: Cable) -> None:
    solicit = bytes.fromhex("333300000002") + THEIRS + b"\x86\xdd" + bytes(6) + b"\x3a\xff"
    solicit += bytes(32) + b"\x85" + bytes(15)
    other = solicit[:20] + b"\x11" + solicit[21:]  # UDP
    with heard(cable, icmpv6.FILTER, ETH_IPV6) as raw:
        say(cable, tagged(solicit, 7), other, solicit)
        assert arrived(raw, solicit) == [solicit]


def test_a_vlans_holder_of_an_address_is_no_conflict(cable: Cable) -> None:
    """Nobody of ours has the address: the offer goes out although another VLAN's host answers."""
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.50"))
    settings = Settings(Mode.ALL, IPv4Address("10.77.0.1"), 24)
    policy = Policy(settings, leases, lambda *_: None)
    with LoopThread(cable.srv.inside()) as loop:
        with cable.srv.inside():
            link = look_up("eth0")
        server = DhcpServer(link, policy, lambda event: None)
        loop.call(server.start())
        try:
            answer = bytearray(arp_probe(THEIRS, IPv4Address("10.77.0.50")))
            answer[20:22] = b"\0\2"
            answer[28:32] = IPv4Address("10.77.0.50").packed
            end = time.monotonic() + PATIENCE
            while not len(leases.ahead):  # the look ahead has heard nobody
                say(cable, tagged(bytes(answer), 7))
                assert time.monotonic() < end
                assert not server.counters["conflicts"]
                time.sleep(0.01)
        finally:
            loop.call(server.close())
