"""UEFI PCs without a disk: OVMF's own PXE loads iPXE; two at once do not see each other."""

import hashlib

import pytest

from pxed.lab.qemu import Client
from tests.boot.conftest import Room, RoomMaker

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def room(make_room: RoomMaker) -> Room:
    return make_room()


@pytest.fixture(scope="module")
def seats(room: Room) -> list[Client]:
    """One UEFI and one BIOS machine, booting at the same time."""
    clients = [room.lab.add_client(firmware="uefi"), room.lab.add_client(firmware="bios")]
    for client in clients:
        client.power_on()
    for client in clients:
        room.server.wait_running(client, 200)
    return clients


def test_uefi_loads_ipxe_by_tftp_and_goes_through_every_stage(
    room: Room, seats: list[Client]
) -> None:
    assert room.stages(seats[0]) == [
        "DISCOVER",
        "OFFER",
        "boot file",
        "iPXE",
        "first AoE read",
        "kernel up",
        "root mounted",
        "/config mounted",
        "running",
    ]


def test_each_has_its_own_config_at_the_same_address(seats: list[Client]) -> None:
    for client in seats:
        client.shell(f"echo {client.name} > /config/whoami && sync")
    assert [client.shell("cat /config/whoami").strip() for client in seats] == [
        client.name for client in seats
    ]


def test_what_one_writes_lands_in_its_own_midlayer_only(room: Room, seats: list[Client]) -> None:
    seats[0].shell("echo the-secret-of-seat-01 > /config/secret && sync")
    seats[1].shell("echo 3 > /proc/sys/vm/drop_caches")
    assert "secret" not in seats[1].shell("ls /config")
    holders = {
        path.name
        for path in (room.state / "config/midlayers").glob("5254*.ext4")
        if b"the-secret-of-seat-01" in path.read_bytes()
    }
    assert holders == {"525400000001.ext4"}


def test_both_boot_the_same_root(seats: list[Client]) -> None:
    sums = {c.shell("md5sum < /dev/etherd/e16.1", timeout=60).split()[0] for c in seats}
    assert len(sums) == 1


def test_the_root_they_read_is_the_image(room: Room, seats: list[Client]) -> None:
    image = (room.state / "images/lab/1/root.squashfs").read_bytes()
    want = hashlib.md5(image, usedforsecurity=False).hexdigest()
    assert seats[0].shell("md5sum < /dev/etherd/e16.1", timeout=60).split()[0] == want


def test_uefi_finds_its_file_again_after_its_next_boot(room: Room, seats: list[Client]) -> None:
    client = seats[0]
    client.shell("echo again > /root/mine && sync")
    client.power_off()
    client.power_on()
    room.server.wait_running(client, 200)
    assert client.shell("cat /root/mine") == "again\n"
    assert room.server.client(client.mac)["boots"] == 2
