"""kill -9 of the running server: no address is given twice, and every machine keeps its own."""

import contextlib
import signal
import socket
import subprocess
from ipaddress import IPv4Address

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Message, Op, Opt, Type, decode, encode
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from tests.aoe_peer import eventually
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_mode import serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
_SO_RCVBUFFORCE = 33
TEXT = GOOD + '[dhcp]\nrange = "10.77.0.100-10.77.0.139"\nlease = "1h"\n'


class Room:
    """Machines behind one socket; none of them answers ARP, like one that loads its boot file."""

    def __init__(self, host: Namespace) -> None:
        with host.inside():
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        # The answers to a flood that nobody reads leave room for the one that somebody waits for.
        self._udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._udp.bind(("", 68))
        self._udp.settimeout(60)

    def say(self, mac: Mac, kind: Type, **more: bytes) -> None:
        options: dict[int, bytes] = {
            Opt.TYPE: bytes((kind,)),
            Opt.VENDOR_CLASS: b"PXEClient:Arch:00000:UNDI:002001",
            Opt.ARCH: b"\0\0",
        }
        options |= {Opt[name]: value for name, value in more.items()}
        message = Message(Op.REQUEST, 7, mac, flags=0x8000, options=options)
        self._udp.sendto(encode(message), ("255.255.255.255", 67))

    def _answer(self, mac: Mac, *kinds: Type) -> Message:
        """The next of these; an OFFER may be a late one to a DISCOVER that was said again."""
        while True:
            message = decode(self._udp.recv(2048))
            if message.chaddr == mac and message.type in kinds:
                return message

    def boot(self, mac: Mac, **more: bytes) -> IPv4Address:
        """DISCOVER to ACK; ``more``: options of both."""
        self.say(mac, Type.DISCOVER, **more)
        offer = self._answer(mac, Type.OFFER)
        self.say(mac, Type.REQUEST, SERVER_ID=offer.options[Opt.SERVER_ID],
                  REQUESTED_IP=offer.yiaddr.packed, **more)  # fmt: skip
        ack = self._answer(mac, Type.ACK, Type.NAK)
        assert ack.type == Type.ACK
        return ack.yiaddr

    def tries(self, mac: Mac) -> bool:
        """``boot``, or False: there was no answer."""
        self._udp.settimeout(1)
        try:
            return bool(self.boot(mac))
        except TimeoutError:
            return False
        finally:
            self._udp.settimeout(60)

    def starves(self, mac: Mac) -> None:
        """DISCOVER; and whoever has an offer by now takes it."""
        self.say(mac, Type.DISCOVER)
        self._udp.settimeout(0.005)
        with contextlib.suppress(TimeoutError):
            while True:
                offer = decode(self._udp.recv(2048))
                if offer.type == Type.OFFER:
                    self.say(offer.chaddr, Type.REQUEST, SERVER_ID=offer.options[Opt.SERVER_ID],
                             REQUESTED_IP=offer.yiaddr.packed)  # fmt: skip
        self._udp.settimeout(60)

    def gives_back(self, mac: Mac, ip: IPv4Address) -> None:
        options: dict[int, bytes] = {
            Opt.TYPE: bytes((Type.RELEASE,)), Opt.SERVER_ID: IPv4Address("10.77.0.1").packed,
        }  # fmt: skip
        message = Message(Op.REQUEST, 7, mac, ciaddr=ip, options=options)
        self._udp.sendto(encode(message), ("255.255.255.255", 67))

    def decline(self, mac: Mac, ip: IPv4Address) -> None:
        self.say(mac, Type.DECLINE, REQUESTED_IP=ip.packed,
                  SERVER_ID=IPv4Address("10.77.0.1").packed)  # fmt: skip

    def close(self) -> None:
        self._udp.close()


def machine(number: int) -> Mac:
    return Mac(f"52:54:00:00:0a:{number:02x}")


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_no_address_is_given_twice(serve: Serve) -> None:
    """Killed right after each third ACK; the pool has one address for each machine and no more."""
    serve.cable.cli.ip("addr flush dev eth0")
    room, has = Room(serve.cable.cli), dict[Mac, IPv4Address]()
    for generation in range(3):
        (serve.state / "control.sock").unlink(missing_ok=True)
        process = serve.start(TEXT)
        for number in range(3):
            mac = machine(generation * 3 + number)
            has[mac] = room.boot(mac)
        kill(process)
    (serve.state / "control.sock").unlink()
    process = serve.start(TEXT)
    known = list(has)
    for number in range(100, 131):  # strangers first: they get all the rest of the pool
        has[machine(number)] = room.boot(machine(number))
    again = {mac: room.boot(mac) for mac in known}
    kill(process)
    room.close()
    assert again.items() <= has.items()
    assert len(set(has.values())) == len(has) == 40


def test_a_declined_address_stays_in_quarantine(serve: Serve) -> None:
    serve.cable.cli.ip("addr flush dev eth0")
    room = Room(serve.cable.cli)
    text = TEXT.replace("139", "101")
    process = serve.start(text)
    bad = room.boot(machine(0))
    room.decline(machine(0), bad)
    control = ControlClient(serve.state / "control.sock")
    assert eventually(lambda: "decline" in [e["kind"] for e in control.follow("/v1/events")], 60)
    kill(process)
    (serve.state / "control.sock").unlink()
    process = serve.start(text)
    good = room.boot(machine(0))
    kill(process)
    room.close()
    assert good != bad
