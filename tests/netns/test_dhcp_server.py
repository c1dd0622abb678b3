"""The DHCP server against real clients: Debian's udhcpc, and raw packets where no client runs."""

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pxed.dhcp.bootplan import BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.codec import Message, Op, Opt, Type, decode, encode
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from pxed.net.dhcp import DhcpServer
from pxed.net.link import look_up
from pxed.net.lookout import Lookout
from pxed.net.rival import find_rivals
from pxed.net.thread import LoopThread
from tests.aoe_peer import eventually
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns
SERVER = IPv4Address("10.77.0.1")
PXE = "PXEClient:Arch:00000:UNDI:002001"


def plan(
    mac: Mac, firmware: Firmware, arch: int | None, features: frozenset[int]
) -> BootPlan | None:
    return BootPlan("undionly.kpxe", "aoe:e16.0", script="http://10.77.0.1/boot.ipxe")


@contextmanager
def serving(
    ns: Namespace, mode: Mode, *, first: str = "10.77.0.50", last: str = "10.77.0.60"
) -> Iterator[tuple[DhcpServer, list[Event]]]:
    events: list[Event] = []
    with LoopThread(ns.inside()) as thread:

        async def start() -> DhcpServer:
            settings = Settings(mode, SERVER, 24, router=SERVER, lease=600)
            leases = Leases(IPv4Address(first), IPv4Address(last))
            server = DhcpServer(look_up("eth0"), Policy(settings, leases, plan), events.append)
            await server.start()
            return server

        server = thread.call(start())
        try:
            yield server, events
        finally:
            thread.call(server.close())
            thread.call(server.close())  # twice is fine


SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
env > {out}
ip addr add $ip/$mask dev $interface
"""


def udhcpc(cable: Cable, folder: Path, *options: str, refused: bool = False) -> dict[str, str]:
    """Run the client once; its environment when bound, {} if it got no lease.

    It asks for a minute and a half; where it is to be ``refused``, twice within two seconds.
    """
    requires("udhcpc")
    out, script = folder / "env", folder / "script"
    out.unlink(missing_ok=True)
    script.write_text(SCRIPT.format(out=out))
    script.chmod(0o755)
    patience = ["-t", "2", "-T", "1"] if refused else ["-t", "30", "-T", "3"]
    command = ["udhcpc", "-i", "eth0", "-n", "-q", "-f", *patience]
    cable.cli.run([*command, "-s", str(script), *options], check=False, timeout=120)
    if not out.exists():
        return {}
    return dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)


def kinds(events: list[Event]) -> list[Kind]:
    """Each kind once, in the order in which they came first: who waits long says it again."""
    return list(dict.fromkeys(event.kind for event in events))


def test_all_mode_gives_a_lease(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.ALL) as (_, events):
        got = udhcpc(cable, tmp_path)
    assert got["ip"].startswith("10.77.0.5") or got["ip"] == "10.77.0.60"
    assert (got["serverid"], got["router"], got["lease"]) == ("10.77.0.1", "10.77.0.1", "600")
    assert kinds(events) == [Kind.DISCOVER, Kind.OFFER, Kind.REQUEST, Kind.ACK]


def test_the_lease_works(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.ALL):
        got = udhcpc(cable, tmp_path)
    with cable.srv.inside():
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with cable.cli.inside():
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here, there:
        here.bind(("10.77.0.1", 7777))
        here.settimeout(60)
        there.sendto(b"hello", ("10.77.0.1", 7777))
        data, source = here.recvfrom(100)
    assert (data, source[0]) == (b"hello", got["ip"])


def test_the_same_machine_gets_the_same_address(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.ALL):
        first = udhcpc(cable, tmp_path)["ip"]
        cable.cli.ip("addr flush dev eth0")
        assert udhcpc(cable, tmp_path)["ip"] == first


def test_pxe_only_is_silent_to_a_system(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.PXE_ONLY) as (server, events):
        assert udhcpc(cable, tmp_path, refused=True) == {}
        assert eventually(lambda: bool(events))  # it was heard
    assert server.counters["replies"] == 0
    assert {e.kind for e in events} == {Kind.IGNORED}


def test_pxe_only_answers_firmware(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.PXE_ONLY) as (_, events):
        got = udhcpc(cable, tmp_path, "-V", PXE, "-O", "bootfile", "-O", "tftp")
    assert got["boot_file"] == "undionly.kpxe"
    assert got["siaddr"] == "10.77.0.1"
    ack = events[-1]
    assert (ack.kind, ack.detail["boot_file"]) == (Kind.ACK, "undionly.kpxe")


def test_nobody_is_asked_for_an_address_that_nobody_has_yet(cable: Cable, tmp_path: Path) -> None:
    """The answer goes to the MAC: nobody would reply to an ARP request for yiaddr.

    Probes, which claim no address of ours, are looks ahead.
    """
    with cable.cli.inside():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with raw, serving(cable.srv, Mode.ALL):
        raw.bind(("eth0", 0x0806))
        got = udhcpc(cable, tmp_path)
        raw.setblocking(False)
        asked, heard = [], 0
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = raw.recv(128)
                heard += 1
                if frame[28:32] == SERVER.packed and frame[20:22] == b"\0\1":
                    asked.append(IPv4Address(frame[38:42]))
    assert got["ip"]
    assert heard
    assert IPv4Address(got["ip"]) not in asked


def test_broadcast_flag(cable: Cable, tmp_path: Path) -> None:
    with serving(cable.srv, Mode.ALL):
        assert udhcpc(cable, tmp_path, "-B")


def test_release(cable: Cable, tmp_path: Path) -> None:
    requires("udhcpc")
    script = tmp_path / "script"
    script.write_text(SCRIPT.format(out=tmp_path / "env"))
    script.chmod(0o755)
    with serving(cable.srv, Mode.ALL) as (_, events):
        client = cable.cli.popen(["udhcpc", "-i", "eth0", "-f", "-R", "-s", str(script)])
        assert eventually(lambda: bool(events) and events[-1].kind is Kind.ACK)
        assert eventually((tmp_path / "env").exists)  # its script sets the address
        client.terminate()
        assert eventually(lambda: events[-1].kind is Kind.RELEASE)


def test_an_address_in_use_is_not_offered(cable: Cable, tmp_path: Path) -> None:
    """Another machine on the cable has one of the two addresses: looking ahead finds it."""
    somebody_else_has_50(cable)
    with serving(cable.srv, Mode.ALL, last="10.77.0.51") as (server, events):
        assert eventually(lambda: server.counters["conflicts"] == 1)
        got = []
        for tail in range(3):  # several machines, so that one would hit the taken address
            mac = f"52:54:00:00:01:{tail:02x}"
            cable.cli.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up")
            got.append(udhcpc(cable, tmp_path, refused=tail > 0).get("ip", ""))
            assert eventually(lambda mac=mac: mac in {event.mac for event in events})
            cable.cli.ip("addr flush dev eth0")
    assert got == ["10.77.0.51", "", ""]
    assert server.counters["conflicts"] == 1
    (alarm,) = [event for event in events if event.kind is Kind.ALARM]
    assert "10.77.0.50 is in use by" in str(alarm.detail["text"])


def somebody_else_has_50(cable: Cable) -> None:
    """Another machine at the client's end of the cable, with the only address there is."""
    cable.cli.ip(
        "link add link eth0 name other type macvlan mode bridge",
        "link set other up",
        "addr add 10.77.0.50/32 dev other",
    )


def test_an_address_that_nobody_looked_at_is_probed_before_its_offer(
    cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the first moments of a server, and when more come than were looked at."""
    monkeypatch.setattr(Lookout, "start", lambda self: None)
    somebody_else_has_50(cable)
    with serving(cable.srv, Mode.ALL, last="10.77.0.50") as (server, events):
        assert not udhcpc(cable, tmp_path, refused=True)
        assert eventually(lambda: server.counters["conflicts"] > 0)
    assert server.counters["conflicts"] == 1
    assert Kind.DECLINE in {e.kind for e in events}


def test_an_answer_that_waits_while_the_server_is_busy_counts(
    cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to wait is over before the loop has come to what arrived in it."""
    monkeypatch.setattr(Lookout, "start", lambda self: None)
    probe = DhcpServer._probe

    def busy(self: DhcpServer, *args: Any) -> bool:
        held = probe(self, *args)
        time.sleep(0.3)
        return held

    monkeypatch.setattr(DhcpServer, "_probe", busy)
    somebody_else_has_50(cable)
    with serving(cable.srv, Mode.ALL, last="10.77.0.50") as (server, events):
        assert not udhcpc(cable, tmp_path, refused=True)
        assert eventually(lambda: Kind.POOL_FULL in kinds(events))
    assert server.counters["conflicts"] == 1


def test_an_offer_does_not_wait_for_a_probe(cable: Cable) -> None:
    """Of an address that was looked at ahead of time; the probe was on the wire before."""
    with serving(cable.srv, Mode.ALL, last="10.77.0.200") as (server, _):
        leases = server.policy.leases
        assert eventually(lambda: len(leases.ahead) == leases.size)
        ready = set(leases.ahead.ending(float("inf")))
        mac = Mac("52:54:00:00:00:09")
        options: dict[int, bytes] = {Opt.TYPE: bytes((Type.DISCOVER,))}
        message = encode(Message(Op.REQUEST, 7, mac, options=options))
        assert server.policy.handle(message, time.time()).probe is None
        lease = leases.of(mac, time.time())
        assert lease is not None
        assert lease.ip in ready


def test_port_in_use_is_one_clear_line(cable: Cable) -> None:
    with (
        serving(cable.srv, Mode.ALL),
        pytest.raises(HostError, match=r"port 67/udp is in use on eth0 .*another DHCP server"),
        serving(cable.srv, Mode.ALL),
    ):
        pass


def test_rubbish_is_counted_and_the_service_goes_on(cable: Cable, tmp_path: Path) -> None:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    with serving(cable.srv, Mode.ALL) as (server, _):
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for data in (b"", b"x" * 300, b"\x01\x01\x06" + bytes(240)):
                udp.sendto(data, ("10.77.0.1", 67))
        assert udhcpc(cable, tmp_path)
    assert server.counters["malformed"] == 3


def test_proxy_answers_on_4011(cable: Cable) -> None:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    ask = Message(
        op=Op.REQUEST,
        xid=7,
        chaddr=Mac("52:54:00:00:00:09"),
        ciaddr=IPv4Address("10.77.0.2"),
        options={
            Opt.TYPE: bytes((Type.REQUEST,)),
            Opt.VENDOR_CLASS: b"PXEClient:Arch:00007:UNDI:003016",
            Opt.ARCH: b"\0\7",
        },
    )
    with (
        serving(cable.srv, Mode.PROXY),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(60)
        udp.sendto(encode(ask), ("10.77.0.1", 4011))
        data, source = udp.recvfrom(2048)
    reply = decode(data)
    assert source == ("10.77.0.1", 4011)
    assert (reply.type, reply.file) == (Type.ACK, b"undionly.kpxe")


def test_a_rival_server_is_found(cable: Cable) -> None:
    """M15, from the other end of the cable; the server's own end hears nobody."""

    async def look() -> list[str]:
        return [str(rival) for rival in await find_rivals(look_up("eth0"), 1.0)]

    with serving(cable.srv, Mode.ALL), LoopThread(cable.cli.inside()) as other:
        lines: list[str] = []

        def found() -> bool:
            lines[:] = other.call(look())
            return "boot" in "".join(lines)

        assert eventually(found)
        with LoopThread(cable.srv.inside()) as same:
            assert same.call(look()) == []
    assert len(lines) == 1
    assert lines[0].startswith("another DHCP server with network boot answers")
    assert "10.77.0.1" in lines[0]


def test_a_quiet_segment_has_no_rival(cable: Cable) -> None:
    async def look() -> int:
        return len(await find_rivals(look_up("eth0"), 0.4))

    with LoopThread(cable.cli.inside()) as thread:
        assert thread.call(look()) == 0
