"""Installation over the network: a server orders it once; the machine comes back from its disk."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pxed.client.minimal import build_minimal
from pxed.lab.qemu import Client, Firmware
from tests.boot.conftest import PROGRAMS, Room, RoomMaker
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]

POLICY = "[class.x86.provision]\nsupported_until = 2027-12-31\n"


def build(directory: Path, version: str) -> Path:
    requires(*PROGRAMS, "grub-mkimage", "sfdisk")
    build_minimal(directory, name="lab", version=version, maintenance=True, released="2026-11-25")
    return directory


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tfm") / "1.0", "1.0")


@pytest.fixture(scope="module")
def room(make_room: RoomMaker, first: Path) -> Room:
    return make_room(POLICY, image=first, version="1.0")


def with_disk(room: Room, firmware: Firmware, faults: str = "") -> Client:
    """``faults``: a prefix of the disk's name for QEMU."""
    number = len(room.lab.clients)
    disk = room.lab.directory / f"disk{number}"
    with disk.open("wb") as out:
        out.truncate(512 << 20)
    return room.lab.add_client(
        firmware=firmware,
        extra=(
            "-drive", f"file={faults}{disk},format=raw,if=none,id=disk0",
            "-device", "virtio-blk-pci,drive=disk0,bootindex=2",
        ),
    )  # fmt: skip


def order(room: Room, client: Client) -> None:
    body = {"select": [client.mac], "order": "provision", "once": True}
    room.server.control.post("/v1/clients/boot", body)


def comes_from_its_disk(client: Client, image: str, timeout: float = 300) -> None:
    client.wait_for(rf"(?s)restarting.*from vda, system [ab].*running {image}", timeout)
    client.wait_for(rf"running {image}[^\n]*\n(?s:.*)# ", 60)


def eventually(true: Callable[[], bool], limit: float = 60) -> bool:
    until = time.monotonic() + limit
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    client = with_disk(room, "bios")
    order(room, client)
    client.power_on()
    comes_from_its_disk(client, "lab@1.0")
    return client


def test_the_server_knows_what_became_of_it(room: Room, seat: Client) -> None:
    assert eventually(lambda: room.server.client(seat.mac)["state"] == "local")
    shown = room.server.client(seat.mac)
    assert shown["result"].startswith("installed lab@1.0 on vda, after ")
    assert (shown["order"], shown["once"], shown["provisioned"]) == ("local", "", "lab@1.0")
    assert shown["boots"] == 2  # the installation, and the one that led to its disk


def test_its_log_has_every_step(room: Room, seat: Client) -> None:
    assert eventually(lambda: room.server.client(seat.mac)["state"] == "local")
    events = list(room.server.control.follow("/v1/events"))
    steps = [e["step"] for e in events if e["kind"] == "report" and e["mac"] == seat.mac]
    assert steps[:3] == ["kernel", "root", "disk"]
    assert steps[-1] == "installed"
    assert steps.count("installing") >= 3


def test_it_keeps_nothing_of_the_network(seat: Client) -> None:
    assert "etherd" not in seat.shell("cat /proc/mounts; ls /sys/block")
    assert "/config ext4 rw" in seat.shell("cat /proc/mounts")


def test_a_rolling_upgrade_keeps_its_settings(room: Room, seat: Client) -> None:
    seat.shell("echo mine > /etc/mine && sync")
    build(room.state / "images/lab/1.1", "1.1")
    room.server.control.post("/v1/images/use", {"image": "lab@1.1", "channel": "stable"})
    order(room, seat)
    seat.reset()
    comes_from_its_disk(seat, "lab@1.1")
    assert seat.shell("cat /etc/mine") == "mine\n"
    assert eventually(lambda: room.server.client(seat.mac)["state"] == "local")
    shown = room.server.client(seat.mac)
    assert shown["result"].startswith("upgraded lab@1.0 to lab@1.1 on vda")
    assert (shown["order"], shown["once"], shown["provisioned"]) == ("local", "", "lab@1.1")


@pytest.mark.long
@pytest.mark.ci
def test_a_uefi_machine_is_installed_over_a_restart_of_the_server(room: Room) -> None:
    client = with_disk(room, "uefi")
    order(room, client)
    client.power_on()
    client.wait_for("maintenance mode", 200)
    room.server.stop()
    room.server.start()
    comes_from_its_disk(client, r"lab@1\.[01]", 200)
    assert eventually(lambda: room.server.client(client.mac)["state"] == "local")
    # iPXE started the disk's loader: the firmware did not get to its other ways to the network.
    events = [e for e in room.server.control.follow("/v1/events") if e["mac"] == client.mac]
    assert {"solicit6", "discover"} & {e["kind"] for e in events} == {"discover"}
    assert {e["firmware"] for e in events if e["kind"] == "discover"} == {"pxe", "ipxe"}
    client.power_off()


@pytest.mark.long
@pytest.mark.ci
def test_an_installation_goes_on_after_its_server_or_its_link_was_away(room: Room) -> None:
    client = with_disk(room, "bios")
    order(room, client)
    client.power_on()
    client.wait_for("vda: partitions, 2 x", 200)  # of the root nothing is read yet
    room.server.stop()
    client.cable(False)
    time.sleep(30)  # what the link is down for
    assert not re.search("pxed: [0-9.]+ (installed|failed) ", client.console())
    client.cable(True)
    room.server.start()
    comes_from_its_disk(client, r"lab@1\.[01]")
    assert eventually(lambda: room.server.client(client.mac)["state"] == "local")
    assert room.server.client(client.mac)["result"].startswith("installed lab@1.")
    client.power_off()


@pytest.mark.long
@pytest.mark.ci
def test_a_disk_that_refuses_a_write_reaches_the_server(room: Room, seat: Client) -> None:
    assert seat.running  # so its disk, of the same size, has the same partitions
    argv = ["sfdisk", "--json", str(room.lab.directory / "disk0")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (root,) = [
        part["start"]
        for part in json.loads(said)["partitiontable"]["partitions"]
        if part["name"] == "pxed-root-a"
    ]
    rules = room.lab.directory / "faults"
    rules.write_text(
        f'[inject-error]\nevent = "none"\niotype = "write"\nerrno = "5"\nsector = "{root + 2048}"\n'
    )
    client = with_disk(room, "bios", f"blkdebug:{rules}:")
    order(room, client)
    client.power_on()
    client.wait_for("pxed: [0-9.]+ failed ", 300)
    assert eventually(lambda: room.server.client(client.mac)["state"] == "failed")
    shown = room.server.client(client.mac)
    assert re.match(r"cannot write to vda.*: Input/output error$", shown["why"]), shown
    assert shown["result"] == f"failed {shown['why']}"
    client.power_off()


def test_a_machine_without_a_disk_says_so(room: Room) -> None:
    client = room.lab.add_client()
    order(room, client)
    client.power_on()
    client.wait_for("this machine has no disk that this image has a driver for", 200)
    assert eventually(lambda: room.server.client(client.mac)["state"] == "failed")
    shown = room.server.client(client.mac)
    assert "no disk" in shown["why"]
    client.power_off()


@pytest.mark.parametrize(
    "firmware", ["bios", pytest.param("uefi", marks=[pytest.mark.long, pytest.mark.ci])]
)
def test_the_installer_can_be_loaded_by_http(
    make_room: RoomMaker, first: Path, firmware: Firmware
) -> None:
    """Makes a room of its own: the last tests here."""
    kernel = f'[class.x86]\nboot = "kernel"\n{POLICY}'
    room = make_room(kernel, image=first, version="1.0")
    client = with_disk(room, firmware)
    order(room, client)
    client.power_on()
    client.wait_for("pxed: [0-9.]+ installed lab@1.0 on vda", 300)
    assert eventually(lambda: room.server.client(client.mac)["state"] == "local")
    assert room.server.client(client.mac)["provisioned"] == "lab@1.0"
    events = room.server.control.follow("/v1/events")
    files = [e["file"] for e in events if e["kind"] == "http-done" and e["mac"] == client.mac]
    assert files[:3] == ["/tfm/lab@1.0.ipxe", "/tfm/lab@1.0/vmlinuz", "/tfm/lab@1.0/initrd"]
    client.power_off()
