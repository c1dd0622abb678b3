"""Router advertisements against a real peer: the kernel of the client's namespace."""

from contextlib import suppress
from ipaddress import IPv4Interface

import pytest

from pxed.errors import HostError, UsageError
from pxed.events import Event, Kind
from pxed.lab.netns import Namespace
from pxed.net.link import Link, Watch, look_up, names
from pxed.net.ra import RouterAdvertiser
from pxed.net.thread import LoopThread
from tests.aoe_peer import eventually
from tests.conftest import Cable

pytestmark = pytest.mark.netns


def snmp6(ns: Namespace) -> dict[str, int]:
    """The ICMPv6 counters of a namespace's kernel."""
    lines = ns.run(["cat", "/proc/net/snmp6"]).stdout.splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def heard(ns: Namespace) -> int:
    """How many router advertisements came to a namespace's kernel."""
    return snmp6(ns)["Icmp6InRouterAdvertisements"]


def solicit(cable: Cable, in_boot_phase: bool) -> tuple[RouterAdvertiser, list[Event]]:
    """Let the client's kernel solicit a router; what the server did by then."""
    events: list[Event] = []
    cable.srv.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> RouterAdvertiser:
            server = RouterAdvertiser(look_up("eth0"), lambda mac: in_boot_phase, events.append)
            await server.start()
            return server

        server = thread.call(start())
        try:
            cable.cli.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2"])
            cable.cli.ip("link set eth0 down", "link set eth0 up")
            assert eventually(lambda: server.counters["received"] > 0)
            assert not in_boot_phase or eventually(lambda: heard(cable.cli) > 0)
        finally:
            thread.call(server.close())
            thread.call(server.close())
    return server, events


def test_the_kernel_accepts_the_answer(cable: Cable) -> None:
    server, events = solicit(cable, in_boot_phase=True)
    assert server.counters["replies"] >= 1  # it solicits again after some seconds
    assert {event.kind for event in events} == {Kind.ROUTER_ADVERT}
    with cable.cli.inside():
        assert events[0].mac == look_up("eth0").mac
    seen = snmp6(cable.cli)
    assert seen["Icmp6InErrors"] == 0
    assert seen["Icmp6InCsumErrors"] == 0


def test_the_answer_configures_nothing(cable: Cable) -> None:
    solicit(cable, in_boot_phase=True)
    routes = cable.cli.run(["ip", "-6", "route", "show", "default"]).stdout
    addresses = cable.cli.run(["ip", "-6", "addr", "show", "scope", "global"]).stdout
    assert (routes, addresses) == ("", "")


def test_no_answer_outside_the_boot_phase(cable: Cable) -> None:
    server, events = solicit(cable, in_boot_phase=False)
    assert server.counters["ignored"] >= 1
    assert server.counters["replies"] == 0
    assert events == []


def test_look_up(cable: Cable) -> None:
    with cable.srv.inside():
        link = look_up("eth0")
    assert (link.name, link.mtu, link.up, link.carrier) == ("eth0", 1500, True, True)
    assert str(link.address()) == "10.77.0.1/24"


def test_an_unknown_interface_lists_the_others(cable: Cable) -> None:
    with cable.srv.inside():
        with pytest.raises(UsageError, match=r"there is no interface 'eth7': choose from eth0"):
            look_up("eth7")
        with pytest.raises(UsageError, match="lo is not an Ethernet interface"):
            look_up("lo")
        assert names() == ["eth0"]


def test_an_interface_without_an_address(cable: Cable) -> None:
    with cable.cli.inside():
        link = look_up("eth0")
    with pytest.raises(HostError, match="eth0 has no IPv4 address"):
        link.address()


def test_watch_follows_the_address(cable: Cable) -> None:
    """M1: the address of the server changes while it runs; then the interface goes."""
    seen: list[Link | None] = []
    with LoopThread(cable.srv.inside()) as thread:
        watch = Watch("eth0", seen.append)
        thread.call(watch.start())
        try:
            cable.srv.ip("addr flush dev eth0", "addr add 10.88.0.1/16 dev eth0")
            # It may be seen between its old address and the new one, and before.
            wanted = [IPv4Interface("10.88.0.1/16")]

            def followed() -> bool:
                link = seen[-1] if seen else None
                return link is not None and [*link.addresses] == wanted

            assert eventually(followed)
            with suppress(Exception):
                cable.srv.ip("link del eth0")
            assert eventually(lambda: seen[-1] is None)
        finally:
            thread.call(watch.close())
            thread.call(watch.close())
