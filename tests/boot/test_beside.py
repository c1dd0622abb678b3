"""Real firmware beside the site's own DHCP server, from its DISCOVER to its first AoE read.

OVMF's PXE and HTTP boot, SeaBIOS with the iPXE in QEMU's card, and with Debian's undionly.kpxe.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.boot.conftest import Room, RoomMaker
from tests.boot.test_kernel_boot import NO_PXE
from tests.netns.site import site_server

pytestmark = [pytest.mark.boot, pytest.mark.timeout(240)]
AOE = "first AoE read"

# How each is made: its firmware, what the class needs, QEMU's words.
MACHINES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "card": ("bios", "", ()),
    "undionly": ("bios", '[class.x86]\nipxe = "own"\n', ()),
    "snponly": ("uefi", "", ()),
    "http": ("uefi", "", NO_PXE),
}


def boot(room: Room, machine: str, limit: float = 150) -> list[str]:
    """Switch one on and wait for its disk; its stages."""
    firmware, _, extra = MACHINES[machine]
    client = room.lab.add_client(firmware=firmware, extra=extra, memory=256)
    client.power_on()
    until = time.monotonic() + limit
    stages: list[str] = []
    while AOE not in stages:
        assert time.monotonic() < until, (stages, room.server.log.read_text()[-3000:])
        time.sleep(0.5)
        if any(each["mac"] == client.mac for each in room.server.control.get("/v1/clients")):
            stages = room.stages(client)
    shown = room.server.client(client.mac)
    client.power_off()
    assert shown["boots"] == 1
    assert shown["why"] == ""
    return stages


def run(make_room: RoomMaker, folder: Path, mode: str, site: str, machine: str) -> list[str]:
    room = make_room(f'[dhcp]\nmode = "{mode}"\n{MACHINES[machine][1]}')
    site_server(site, room.lab.add_host("site", "10.77.0.2/24"), folder)
    stages = boot(room, machine)
    acks = [e for e in room.server.control.follow("/v1/events") if e["kind"] == "ack" and e["mac"]]
    site_gave = [e for e in room.server.control.follow("/v1/events") if e.get("server")]
    if mode == "proxy":
        assert all(each["ip"].startswith("10.77.0.1") for each in acks)  # port 4011: its range
        assert {each["server"] for each in site_gave} == {"10.77.0.2"}
    elif acks:
        assert site_gave == []
    return stages


@pytest.mark.parametrize(
    ("mode", "site", "machine"),
    [
        pytest.param(
            mode, site, machine,
            marks=[] if (mode, site, machine) == ("proxy", "kea", "http") else pytest.mark.long,
        )
        for mode in ("proxy", "pxe-only")
        for site in ("dnsmasq", "kea")
        for machine in MACHINES
    ],
)  # fmt: skip
def test_discover_to_aoe(
    make_room: RoomMaker, tmp_path: Path, mode: str, site: str, machine: str
) -> None:
    stages = run(make_room, tmp_path, mode, site, machine)
    loads = ["boot file"] if machine != "card" else []
    assert stages[:4] == ["DISCOVER", "OFFER", *loads, "iPXE", AOE][:4]
