"""Debian on a machine's own disk: installed by the server, upgraded with settings kept. Long."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.client.debian import build_debian
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.conftest import PROGRAMS, Room
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1500)]

SCRIPT = b"#!/bin/sh\nset -eu\npasswd --quiet --delete root\n"
POLICY = "[class.x86.provision]\nsupported_until = 2099-12-31\n"


def build(directory: Path, version: str) -> Path:
    requires(*PROGRAMS, "mmdebstrap", "unshare", "grub-mkimage", "sfdisk")
    build_debian(
        directory, name="lab", version=version, kernel="linux-image-cloud-amd64", script=SCRIPT,
        user="student", maintenance=True, compression="lz4",
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    image = build(tmp_path_factory.mktemp("debian") / "1.0", "1.0")
    with Lab() as lab:
        yield Room(lab, image, POLICY, "1.0")


def provision(room: Room, client: Client) -> None:
    """Order it, start, and wait for root's shell on the installed system."""
    body = {"select": [client.mac], "order": "provision", "once": True}
    room.server.control.post("/v1/clients/boot", body)
    client.power_on()
    client.wait_for(r"(?s)restarting.*from vda, system [ab].*login: ", 500)
    log_in(client)


def log_in(client: Client) -> None:
    client.send("root\n")
    client.wait_for(r"root@[^\n]*# ", 60)


def shut_down(client: Client) -> None:
    client.send("systemctl poweroff\n")
    until = time.monotonic() + 120
    while client.running:
        assert time.monotonic() < until, client.console()[-1000:]
        time.sleep(0.5)
    client.power_off()


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    disk = room.lab.directory / "disk"
    with disk.open("wb") as out:
        out.truncate(4 << 30)
    client = room.lab.add_client(
        memory=1024,
        extra=(
            "-drive", f"file={disk},format=raw,if=none,id=disk0",
            "-device", "virtio-blk-pci,drive=disk0,bootindex=2",
        ),
    )  # fmt: skip
    provision(room, client)
    return client


def test_it_runs_from_its_disk_with_a_layer_of_its_own(seat: Client) -> None:
    mounts = seat.shell("cat /proc/mounts")
    assert "upperdir=/config/layers/local/upper" in mounts
    assert "etherd" not in mounts
    assert seat.shell("cat /etc/hostname /etc/pxed-image") == "seat-52-54-00-00-00-01\nlab@1.0\n"
    assert "degraded" not in seat.shell("ls /run/pxed")


def test_no_unit_failed_and_the_system_is_good(seat: Client) -> None:
    seat.shell("systemctl is-system-running --wait", 120, check=False)
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain")
    assert seat.shell("systemctl is-active pxed-good") == "active\n"


def test_its_card_gets_an_address_as_on_any_machine(seat: Client) -> None:
    assert "90-pxed" in seat.shell("networkctl status ens3 --no-pager --lines=0", 60)


def test_the_account_is_locked_and_sudo_wants_a_password(seat: Client) -> None:
    assert seat.shell("passwd --status student").split()[:2] == ["student", "L"]
    assert "NOPASSWD" not in seat.shell("cat /etc/sudoers /etc/sudoers.d/*", check=False)


def test_an_upgrade_keeps_settings_and_identity(room: Room, seat: Client) -> None:
    seat.shell("echo mine > /etc/mine; echo homework > /home/student/work; echo x > /usr/bin/x")
    seat.shell("useradd teacher")
    before = seat.shell("cat /etc/machine-id /etc/hostname")
    shut_down(seat)
    build(room.state / "images/lab/1.1", "1.1")
    room.server.control.post("/v1/images/use", {"image": "lab@1.1", "channel": "stable"})
    provision(room, seat)
    assert seat.shell("cat /etc/pxed-image /etc/mine /home/student/work") == (
        "lab@1.1\nmine\nhomework\n"
    )
    assert seat.shell("cat /etc/machine-id /etc/hostname") == before
    assert "teacher" in seat.shell("getent passwd teacher")
    assert "No such file" in seat.shell("cat /usr/bin/x", check=False)
    assert room.server.client(seat.mac)["result"].startswith("upgraded lab@1.0 to lab@1.1 on vda")
    shut_down(seat)
