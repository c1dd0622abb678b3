"""boot = "kernel": iPXE loads kernel and initrd by HTTP; and UEFI that boots by HTTP itself."""

import pytest

from tests.boot.conftest import Room, RoomMaker

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]
KERNEL = '[class.x86]\nboot = "kernel"\nshelf = 19\n'


@pytest.fixture(scope="module")
def room(make_room: RoomMaker) -> Room:
    return make_room(KERNEL)


def files(room: Room, mac: str) -> list[str]:
    """What this machine has loaded by HTTP."""
    events = room.server.control.follow("/v1/events")
    return [e["file"] for e in events if e["kind"] == "http-done" and e["mac"] == mac]


LOADED = ["/boot/lab@1.ipxe", "/image/lab@1/vmlinuz", "/image/lab@1/initrd"]


def test_bios(room: Room) -> None:
    seat = room.seat("bios")
    assert files(room, seat.mac) == LOADED
    assert "/dev/etherd/e19.3 /config ext4 rw" in seat.shell("cat /proc/mounts")
    assert "BOOTIF=01-" + seat.mac.replace(":", "-") in seat.shell("cat /proc/cmdline")
    stages = room.stages(seat)
    assert stages[-1] == "running"
    assert "kernel up" in stages
    seat.power_off()


def test_uefi(room: Room) -> None:
    seat = room.seat("uefi")
    assert files(room, seat.mac) == LOADED
    assert "e19.1" in seat.shell("ls /dev/etherd")
    assert room.stages(seat)[:4] == ["DISCOVER", "OFFER", "boot file", "iPXE"]
    seat.power_off()


NO_PXE = tuple(
    word
    for version in ("IPv4", "IPv6")
    for word in ("-fw_cfg", f"name=opt/org.tianocore/{version}PXESupport,string=n")
)


def test_uefi_by_http_alone(room: Room) -> None:
    """OVMF without its PXE: its own HTTP boot loads our iPXE, and not a byte comes by TFTP."""
    client = room.lab.add_client(firmware="uefi", extra=NO_PXE)
    client.power_on()
    room.server.wait_running(client, 150)
    assert files(room, client.mac) == ["/ipxe/snponly.efi", *LOADED]
    assert room.stages(client)[:4] == ["DISCOVER", "OFFER", "boot file", "iPXE"]
    assert room.server.client(client.mac)["firmware"] == "uefi-http"
    events = list(room.server.control.follow("/v1/events"))
    assert not [e for e in events if e["kind"].startswith("tftp") and e["mac"] == client.mac]
    client.power_off()
