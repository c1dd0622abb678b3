"""Real firmware beside the site's own DHCP server, from its DISCOVER to its first AoE frame.

OVMF's PXE and HTTP boot, SeaBIOS with the iPXE in QEMU's card, and with Debian's undionly.kpxe.
The disk that they find has nothing on it: what a boot is after that, the other tests here see.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.lab.server import LabServer
from tests.boot.debian import eventually
from tests.boot.test_kernel_boot import NO_PXE
from tests.conftest import requires
from tests.netns.conftest import make_state
from tests.netns.site import site_server

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

# How each is made: its firmware, what the class needs, QEMU's words, and what it loads first.
MACHINES: dict[str, tuple[Any, str, tuple[str, ...], str]] = {
    "card": ("bios", "", (), ""),
    "undionly": ("bios", '[class.x86]\nipxe = "own"\n', (), "undionly.kpxe"),
    "snponly": ("uefi", "", (), "snponly.efi"),
    "http": ("uefi", "", NO_PXE, "/ipxe/snponly.efi"),
    "newer": ("uefi", "", (), "snponly.efi"),  # and the iPXE that asks for autoexec.ipxe
}
ALWAYS = {("proxy", "kea", "card"), ("proxy", "kea", "http"), ("pxe-only", "dnsmasq", "undionly")}
CASES = [
    pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.long)
    for case in (
        (mode, site, machine)
        for mode in ("proxy", "pxe-only")
        for site in ("dnsmasq", "kea")
        for machine in MACHINES
    )
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    requires("qemu-system-x86_64", "mkfs.ext4")
    with Lab() as made:
        yield made


def events_of(server: LabServer, client: Client) -> list[dict[str, Any]]:
    return [e for e in server.control.follow("/v1/events") if e["mac"] == client.mac]


def files(events: list[dict[str, Any]]) -> list[str]:
    return [e["file"] for e in events if e["kind"] in ("tftp-done", "http-done")]


def until_aoe(server: LabServer, client: Client, limit: float = 180) -> list[dict[str, Any]]:
    """Switch it on; what was seen of it until its first AoE frame."""
    client.power_on()
    until = time.monotonic() + limit
    while True:
        events = events_of(server, client)
        if any(event["kind"] == "aoe-found" for event in events):
            client.power_off()
            return events
        assert time.monotonic() < until, [event["kind"] for event in events]
        time.sleep(0.3)


@pytest.mark.parametrize(("mode", "site", "machine"), CASES)
def test_discover_to_aoe(
    lab: Lab, tmp_path: Path, request: pytest.FixtureRequest, mode: str, site: str, machine: str
) -> None:
    firmware, more, extra, loads = MACHINES[machine]
    state = make_state(tmp_path)
    if machine == "newer":
        shutil.copytree(request.getfixturevalue("newer_ipxe"), state / "ipxe")
    server = LabServer(lab, state, f'[dhcp]\nmode = "{mode}"\n{more}')
    site_server(site, lab.add_host("site", "10.77.0.2/24"), tmp_path)
    server.start()
    # Of two offers UEFI takes the address of the one that comes last; a server that knows of the
    # other is that one. Its first look at the segment takes a moment.
    known = "10.77.0.2"
    assert eventually(
        lambda: known in [each["ip"] for each in server.control.get("/v1/status")["conflicts"]]
    )
    client = lab.add_client(firmware=firmware, extra=extra, memory=256)
    until_aoe(server, client)
    wanted = [loads] * bool(loads) + ["x86.ipxe"] * (mode == "proxy")
    if machine == "newer":
        wanted.insert(1, "autoexec.ipxe")
    # The last block's answer came before the AoE frame, and somebody else looks at it.
    assert eventually(lambda: files(events_of(server, client)) == wanted), wanted
    events = events_of(server, client)
    shown = server.client(client.mac)
    assert (shown["boots"], shown["why"]) == (1, "")
    lessors = {e["server"] for e in events if e.get("server")}
    assert lessors == ({"10.77.0.2"} if mode == "proxy" else set())
    assert shown["ip"] in ([f"10.77.0.{n}" for n in range(100, 121)] if mode == "proxy" else
                           [f"10.77.0.{n}" for n in range(128, 255)])  # fmt: skip
    assert not {"nak", "tftp-failed", "http-failed"} & {e["kind"] for e in events}
    server.stop()


@pytest.mark.long
@pytest.mark.parametrize("site", ["dnsmasq", "kea"])
def test_auto_finds_the_site_and_both_firmwares_boot(lab: Lab, tmp_path: Path, site: str) -> None:
    """As ``proxy``, chosen by itself; and as it was before when the site's server comes later."""
    server = LabServer(lab, make_state(tmp_path), '[dhcp]\nmode = "auto"\n')
    host = lab.add_host("site", "10.77.0.2/24")
    server.start()
    assert server.control.get("/v1/status")["dhcp"]["mode"] == "pxe-only"
    first = until_aoe(server, lab.add_client(firmware="bios", memory=256))
    assert not [e for e in first if e.get("server")]
    server.stop()
    site_server(site, host, tmp_path)
    server.start()
    assert server.control.get("/v1/status")["dhcp"]["mode"] == "proxy"
    second = until_aoe(server, lab.add_client(firmware="uefi", memory=256))
    assert {e["server"] for e in second if e.get("server")} == {"10.77.0.2"}
    server.stop()
