"""DHCP through relay agents that other people wrote: ISC's with option 82, and dnsmasq's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.dhcp.replies import Mode
from pxed.events import Kind
from pxed.lab.netns import Namespace, veth
from tests.aoe_peer import eventually
from tests.conftest import Cable
from tests.netns.site import Relay, dnsmasq_relay, isc_relay
from tests.netns.test_dhcp_server import PXE, serving, udhcpc
from tests.netns.test_dissect import blemishes, mac_of, recorded, tshark

pytestmark = pytest.mark.netns


@pytest.fixture
def behind(cable: Cable) -> Iterator[tuple[Cable, Namespace]]:
    """A machine behind the relay host ``cable.cli``; its side is a part of the server's subnet."""
    cable.cli.ip("addr add 10.77.0.3/24 dev eth0")
    with Namespace("far") as far:
        veth(cable.cli, "eth1", far, "eth0")
        cable.cli.ip("addr add 10.77.0.201/29 dev eth1")
        yield cable, far


@pytest.mark.parametrize("relay", [isc_relay, dnsmasq_relay], ids=["isc", "dnsmasq"])
def test_a_lease_through_a_relay(
    behind: tuple[Cable, Namespace], tmp_path: Path, relay: Relay
) -> None:
    cable, far = behind
    file = tmp_path / "wire.pcap"
    with recorded(cable, file), serving(cable.srv, Mode.PXE_ONLY) as (_, events):
        relay(cable.cli, tmp_path)
        got = udhcpc(Cable(cable.srv, far), tmp_path, "-V", PXE, "-O", "bootfile")
    assert got["boot_file"] == "undionly.kpxe"
    assert events[-1].kind is Kind.ACK
    own = mac_of(cable)
    assert blemishes(file, own) == []
    answers = tshark(file, f"eth.src == {own} && dhcp.type == 2", "dhcp.option.type",
                     "dhcp.ip.relay", "udp.dstport")  # fmt: skip
    assert len(answers) >= 2
    for line in answers:
        options, giaddr, port = line.split("\t")
        assert (giaddr, port) == ("10.77.0.201", "67")
        codes = [code for code in options.split(",") if code not in ("0", "255")]
        if relay is isc_relay:
            assert codes[-1] == "82"
        else:
            assert "82" not in codes


def test_a_machine_behind_a_router_is_told_why(
    behind: tuple[Cable, Namespace], tmp_path: Path
) -> None:
    """M16: AoE does not go through routers, so it gets no address here either."""
    cable, far = behind
    cable.cli.ip("addr flush dev eth1", "addr add 10.99.0.1/24 dev eth1")
    with serving(cable.srv, Mode.PXE_ONLY) as (_, events):
        isc_relay(cable.cli, tmp_path)
        assert udhcpc(Cable(cable.srv, far), tmp_path, "-V", PXE, refused=True) == {}
        assert eventually(lambda: len(events) >= 2)
    assert [event.kind for event in events[:2]] == [Kind.DISCOVER, Kind.IGNORED]
    assert "10.99.0.1" in str(events[1].detail["why"])
    assert "AoE does not pass routers" in str(events[1].detail["why"])
