"""The why-log on the running server: firmware whose boot is stopped on purpose, and what is said.

The firmware is a raw socket that sends what OVMF sends: no real one fails on command.
"""

import contextlib
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Message, Op, Opt, Type, decode, encode
from pxed.errors import UsageError
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_mode import dnsmasq, eventually, running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
MAC = Mac("52:54:00:00:00:77")


class Firmware:
    """A machine in ``host`` that speaks DHCP as UEFI firmware does, by broadcast."""

    def __init__(self, host: Namespace, arch: int = 7, mac: Mac = MAC) -> None:
        self.arch, self.mac = arch, mac
        self.xid, self.secs = 7, 0
        with host.inside():
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_BROADCAST, socket.SO_REUSEADDR):
            self._udp.setsockopt(socket.SOL_SOCKET, option, 1)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        self._udp.bind(("", 68))

    def close(self) -> None:
        self._udp.close()

    def send(self, kind: Type, **more: bytes) -> None:
        options = {
            Opt.TYPE: bytes((kind,)),
            Opt.VENDOR_CLASS: b"PXEClient:Arch:%05d:UNDI:003016" % self.arch,
            Opt.ARCH: self.arch.to_bytes(2, "big"),
        } | {Opt[name]: value for name, value in more.items()}
        message = Message(
            Op.REQUEST, self.xid, self.mac, secs=self.secs, flags=0x8000,
            options={int(code): value for code, value in options.items()},
        )  # fmt: skip
        self._udp.sendto(encode(message), ("255.255.255.255", 67))

    def offers(self, count: int) -> dict[IPv4Address, Message]:
        """The offers by their servers; it asks again after ten seconds, and so for a minute."""
        found: dict[IPv4Address, Message] = {}
        for _ in range(6):
            self.send(Type.DISCOVER)
            with contextlib.suppress(TimeoutError):
                while len(found) < count:
                    message = self.answer(Type.OFFER, 10)
                    server = message.address(Opt.SERVER_ID)
                    assert server is not None
                    found[server] = message
                return found
        raise AssertionError(f"{len(found)} servers of {count} answered: {list(found)}")

    def answer(self, kind: Type, seconds: float = 60) -> Message:
        """The next message of this kind to this machine."""
        until = time.monotonic() + seconds
        while True:
            self._udp.settimeout(max(until - time.monotonic(), 0.001))
            message = decode(self._udp.recv(2048))
            if message.chaddr == self.mac and message.type == kind:
                return message

    def take(self, offer: Message) -> None:
        self.send(
            Type.REQUEST,
            SERVER_ID=offer.options[Opt.SERVER_ID],
            REQUESTED_IP=offer.yiaddr.packed,
        )


def failed(control: ControlClient, mac: Mac = MAC) -> dict[str, Any]:
    """The client once the server has heard of it and given it up."""
    until = time.monotonic() + 90
    while True:
        shown: dict[str, Any] = {}
        with contextlib.suppress(UsageError):  # nobody has heard of it yet
            shown = control.get(f"/v1/clients/{mac}")
        if shown.get("state") == "failed":
            return shown
        assert time.monotonic() < until, shown
        time.sleep(0.1)


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[tuple[Lab, Cable]]:
    """A switch with our server, a place for another one, and a machine."""
    requires("dnsmasq", "ip", "nsenter")
    with Lab() as lab:
        yield lab, Cable(lab.server, lab.add_host("machine"))


def test_a_rivals_offer_won(segment: tuple[Lab, Cable], serve: Serve, tmp_path: Path) -> None:
    lab, cable = segment
    site = lab.add_host("site", "10.77.0.2/24")
    dnsmasq(Cable(cable.srv, site), tmp_path, "--no-ping", "--dhcp-boot=pxelinux.0")
    serve.cable = cable
    with running(serve, GOOD) as control:
        firmware = Firmware(cable.cli)
        offers = firmware.offers(2)
        firmware.take(offers[IPv4Address("10.77.0.2")])
        shown = failed(control)
        listed = serve.cable.srv.run(
            [*serve.command(GOOD)[:3], "client", "list", "--state-dir", str(serve.state)]
        ).stdout
        told = serve.cable.srv.run(
            [*serve.command(GOOD)[:3], "client", "show", MAC, "--state-dir", str(serve.state)]
        ).stdout
        firmware.close()
    assert "took the offer of another DHCP server, 10.77.0.2" in shown["why"]
    assert "boot options" in shown["why"]
    assert "took the offer of another DHCP server" in listed
    assert "why     it took the offer" in told


def test_a_machine_that_never_asks_for_its_file(serve: Serve) -> None:
    serve.cable.cli.ip("addr flush dev eth0")
    with running(serve, GOOD) as control:
        firmware = Firmware(serve.cable.cli)
        ((_, offer),) = firmware.offers(1).items()
        firmware.take(offer)
        shown = failed(control)
        firmware.close()
    assert "never asked for snponly.efi; open port 69/udp" in shown["why"]


def test_machines_that_nothing_is_there_for(serve: Serve) -> None:
    """They are told of at once: a Pi without a class, and an unknown architecture."""
    serve.cable.cli.ip("addr flush dev eth0")
    pi = Mac("dc:a6:32:01:02:03")
    with running(serve, GOOD) as control:
        for mac, arch in ((MAC, 0x42), (pi, 0)):
            firmware = Firmware(serve.cable.cli, arch, mac)
            uuid = b"\0RPi4" + bytes(12)
            firmware.send(Type.DISCOVER, UUID=uuid)
            firmware.close()
        unknown = failed(control)
        shown = failed(control, pi)
    assert "no boot file for architecture 66" in unknown["why"]
    assert "add [class.rpi]" in shown["why"]


def test_pxe_e16(segment: tuple[Lab, Cable], serve: Serve, tmp_path: Path) -> None:
    """A rival that says PXEClient and has nobody on its port 4011."""
    lab, cable = segment
    site = lab.add_host("site", "10.77.0.2/24")
    dnsmasq(Cable(cable.srv, site), tmp_path, "--no-ping", "--dhcp-boot=x.efi",
            "--dhcp-option-force=60,PXEClient")  # fmt: skip
    serve.cable = cable
    with running(serve, GOOD) as control:
        firmware = Firmware(cable.cli)
        firmware.take(firmware.offers(2)[IPv4Address("10.77.0.2")])
        shown = failed(control)
        firmware.close()
    assert "asks its port 4011 and ends with PXE-E16; remove option 60" in shown["why"]
    assert "10.77.0.2" in shown["why"]


def test_a_link_that_came_up_late(serve: Serve) -> None:
    """Spanning tree: the boot goes on, and a note says what held it up."""
    serve.cable.cli.ip("addr flush dev eth0")
    with running(serve, GOOD) as control:
        firmware = Firmware(serve.cable.cli)
        firmware.secs = 28
        firmware.offers(1)
        shown = control.get(f"/v1/clients/{MAC}")
        firmware.close()
    assert shown["state"] == "offered"
    assert "asking for 28 s before anything arrived" in shown["hints"][0]
    assert "portfast" in shown["hints"][0]


def test_an_ipxe_that_cannot_is_not_loaded_for_ever(serve: Serve) -> None:
    """It has no AoE, loads ours, and comes back as it was: once is enough, and it is said."""
    serve.cable.cli.ip("addr flush dev eth0")
    old = {"USER_CLASS": b"iPXE", "IPXE": b"\x18\1\1"}
    with running(serve, GOOD) as control:
        firmware = Firmware(serve.cable.cli, 0)
        files: list[bytes] = []

        def said(*kinds: str) -> int:
            events = [e for e in control.follow("/v1/events") if e.get("mac") == MAC]
            return sum(e["kind"] in kinds for e in events)

        for xid in range(1, 6):
            firmware.xid = xid
            firmware.send(Type.DISCOVER, **old)
            eventually(lambda: said("offer", "ignored") == firmware.xid)
            if said("offer") == len(files):
                continue
            offer = firmware.answer(Type.OFFER)
            files.append(offer.file)
            firmware.send(Type.REQUEST, SERVER_ID=offer.options[Opt.SERVER_ID],
                          REQUESTED_IP=offer.yiaddr.packed, **old)  # fmt: skip
            firmware.answer(Type.ACK)
        shown = control.get(f"/v1/clients/{MAC}")
        firmware.close()
    assert files == [b"undionly.kpxe"]
    assert any("has no AoE support" in each["text"] for each in shown["seen"])
