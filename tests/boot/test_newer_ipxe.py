"""Seats that load the iPXE of a newer Debian: what they did with this Debian's they still do."""

from pathlib import Path

import pytest

from pxed.lab.qemu import Client
from tests.boot.conftest import Room, RoomMaker
from tests.boot.test_kernel_boot import LOADED, NO_PXE, files

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500), pytest.mark.long]

STAGES = [
    "DISCOVER", "OFFER", "boot file", "iPXE", "first AoE read", "kernel up", "root mounted",
    "/config mounted", "running",
]  # fmt: skip
KEY = "Press Ctrl-B"


@pytest.fixture(scope="module")
def room(make_room: RoomMaker, newer_ipxe: Path) -> Room:
    return make_room('[class.x86]\nipxe = "own"\n', ipxe=newer_ipxe)


def by_tftp(room: Room, client: Client) -> list[str]:
    """What this machine has loaded by TFTP."""
    events = room.server.control.follow("/v1/events")
    return [e["file"] for e in events if e["kind"] == "tftp-done" and e["mac"] == client.mac]


@pytest.mark.ci
def test_uefi_boots_its_disk_and_waits_for_no_key(room: Room) -> None:
    seat = room.seat("uefi")
    assert by_tftp(room, seat) == ["snponly.efi", "autoexec.ipxe"]
    assert room.stages(seat) == STAGES
    assert "1.21.1" in seat.console()  # iPXE's own words are on that console
    assert KEY not in seat.console()
    assert "/dev/etherd/e16.3 /config ext4 rw" in seat.shell("cat /proc/mounts")
    seat.power_off()


def test_bios_boots_its_disk(room: Room) -> None:
    seat = room.seat("bios")
    assert by_tftp(room, seat) == ["undionly.kpxe"]
    assert room.stages(seat) == STAGES
    seat.power_off()


def test_uefi_that_is_sent_on_to_its_disk_leaves_at_once(room: Room) -> None:
    """There is none: its firmware tries its next entry, and is told the same."""
    seat = room.lab.add_client(firmware="uefi", memory=256)
    room.server.control.post("/v1/clients/boot", {"select": [seat.mac], "order": "local"})
    seat.power_on()
    seat.wait_for(r"(?s)autoexec\.ipxe.*local\.ipxe.*BdsDxe: failed to start", 120)
    assert room.server.client(seat.mac)["state"] == "local"
    assert KEY not in seat.console()
    seat.power_off()


def test_uefi_by_http_alone_loads_its_kernel(make_room: RoomMaker, newer_ipxe: Path) -> None:
    room = make_room('[class.x86]\nboot = "kernel"\n', ipxe=newer_ipxe)
    client = room.lab.add_client(firmware="uefi", extra=NO_PXE)
    client.power_on()
    room.server.wait_running(client, 200)
    assert files(room, client.mac) == ["/ipxe/snponly.efi", "/ipxe/autoexec.ipxe", *LOADED]
    assert room.stages(client)[:4] == ["DISCOVER", "OFFER", "boot file", "iPXE"]
    assert by_tftp(room, client) == []
    assert KEY not in client.console()
