"""Beside Kea and dnsmasq as the site's DHCP server, in each mode, and as a rival that boots."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Opt
from pxed.lab.lab import Lab
from tests.conftest import Cable
from tests.netns.conftest import GOOD, Serve
from tests.netns.site import site_server
from tests.netns.test_dhcp_server import udhcpc
from tests.netns.test_mode import PATIENT, eventually, running, serve
from tests.netns.test_why import MAC, Firmware, failed

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
OURS, THEIRS = IPv4Address("10.77.0.1"), IPv4Address("10.77.0.2")
FROM_SITE = [IPv4Address(f"10.77.0.{tail}") for tail in range(100, 121)]


@pytest.fixture(params=["dnsmasq", "kea"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def beside(
    kind: str, serve: Serve, folder: Path, mode: str, file: str = ""
) -> Iterator[tuple[ControlClient, Cable]]:
    """A switch with the site's server, ours in ``mode``, and a machine."""
    with Lab() as lab:
        site_server(kind, lab.add_host("site", "10.77.0.2/24"), folder, file)
        serve.cable = Cable(lab.server, lab.add_host("machine"))
        with running(serve, GOOD + f"[dhcp]\n{mode}", before=PATIENT) as control:
            yield control, serve.cable


def events(control: ControlClient, mac: str = MAC) -> list[str]:
    return [e["kind"] for e in control.follow("/v1/events") if e.get("mac") == mac]


def test_pxe_only(kind: str, serve: Serve, tmp_path: Path) -> None:
    """The system's address is the site's; firmware has both offers and our boot file in ours."""
    with beside(kind, serve, tmp_path, 'mode = "pxe-only"\n') as (control, cable):
        system = udhcpc(cable, tmp_path)
        assert control.get("/v1/status")["dhcp"].get("replies", 0) == 0
        cable.cli.ip("addr flush dev eth0")
        firmware = Firmware(cable.cli)
        offers = firmware.offers(2)
        firmware.take(offers[OURS])
        eventually(lambda: "ack" in events(control))
        firmware.close()
    assert system["serverid"] == str(THEIRS)
    assert offers[THEIRS].yiaddr in FROM_SITE
    assert offers[OURS].file == b"snponly.efi"
    assert offers[OURS].yiaddr not in FROM_SITE


def test_proxy(kind: str, serve: Serve, tmp_path: Path) -> None:
    """The site's address and our boot file; and we have seen whose address it took."""
    with beside(kind, serve, tmp_path, 'mode = "proxy"\n') as (control, cable):
        firmware = Firmware(cable.cli)
        offers = firmware.offers(2)
        firmware.take(offers[THEIRS])
        eventually(lambda: "request" in events(control))
        shown = control.get(f"/v1/clients/{MAC}")
        firmware.close()
    assert (offers[OURS].yiaddr, offers[OURS].file) == (IPv4Address(0), b"snponly.efi")
    assert offers[OURS].options[Opt.VENDOR_CLASS] == b"PXEClient"
    assert shown["ip"] == str(offers[THEIRS].yiaddr)


def test_auto(kind: str, serve: Serve, tmp_path: Path) -> None:
    with beside(kind, serve, tmp_path, 'mode = "auto"\n') as (control, _):
        assert control.get("/v1/status")["dhcp"]["mode"] == "proxy"


def test_all_is_refused_or_forced(kind: str, serve: Serve, tmp_path: Path) -> None:
    with Lab() as lab:
        site_server(kind, lab.add_host("site", "10.77.0.2/24"), tmp_path)
        serve.cable = Cable(lab.server, lab.server)
        text = GOOD + '[dhcp]\nmode = "all"\n'
        serve.refuses(text, 1, "another DHCP server", "10.77.0.2", "force", before=PATIENT)
        with running(serve, text + "force = true\n") as control:
            eventually(lambda: bool(control.get("/v1/status")["conflicts"]))
            (found,) = control.get("/v1/status")["conflicts"]
    assert found["serious"]
    assert found["ip"] == "10.77.0.2"


def test_a_rival_that_boots_is_named(kind: str, serve: Serve, tmp_path: Path) -> None:
    """And the machine that takes its offer is told of, with what to do."""
    with beside(kind, serve, tmp_path, 'mode = "pxe-only"\n', "rival.efi") as (control, cable):
        eventually(lambda: len(control.get("/v1/status")["conflicts"]) == 2)
        found = {each["what"]: each for each in control.get("/v1/status")["conflicts"]}
        firmware = Firmware(cable.cli)
        firmware.take(firmware.offers(2)[THEIRS])
        shown = failed(control)
        firmware.close()
    assert found["boot"]["offer"] == "boot file rival.efi"
    assert found["boot"]["ip"] == "10.77.0.2"
    assert "took the offer of another DHCP server, 10.77.0.2" in shown["why"]
    assert found["boot"]["rival"] in shown["why"]
