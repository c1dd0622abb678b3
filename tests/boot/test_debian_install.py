"""Debian on a machine's own disk: installed by the server, upgraded with settings kept. Long.

One machine through its life, in this order; what each test needs of the ones before is a fixture.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed import disk
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.conftest import Room
from tests.boot.debian import eventually, log_in, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1500)]

PIECE = 64 << 10
POLICY = "[class.x86.provision]\nsupported_until = 2099-12-31\n"
SETTINGS = "cat /etc/mine /home/student/work /etc/machine-id /etc/hostname; getent passwd teacher"


@pytest.fixture(scope="module")
def room(debian_image: Path) -> Iterator[Room]:
    with Lab() as lab:
        yield Room(lab, debian_image, POLICY)


def order(room: Room, client: Client) -> None:
    body = {"select": [client.mac], "order": "provision", "once": True}
    room.server.control.post("/v1/clients/boot", body)


def provision(room: Room, client: Client, image: str) -> None:
    """Order it, start, and wait for root's shell on the installed system."""
    order(room, client)
    client.power_on()
    client.wait_for(r"(?s)restarting.*from vda, system [ab].*login: ", 500)
    log_in(client)
    assert client.shell("cat /etc/pxed-image", 60) == f"{image}\n"


def result(room: Room, client: Client) -> str:
    """What the installer came to; the machine is switched off before it starts its system."""
    order(room, client)
    client.power_on()
    said = client.wait_for(
        r"pxed: [0-9.]+ ((?:kept|refused|failed|installed|upgraded) [^\r\n]*)", 300
    )
    client.wait_for("restarting", 60)
    client.power_off()
    assert eventually(lambda: room.server.client(client.mac)["result"] == said[1])
    return said[1]


def offer(room: Room, image: str) -> None:
    room.server.control.post("/v1/images/use", {"image": image, "channel": "stable"})


def digest(room: Room) -> str:
    """Of all that is on the machine's disk; where the file has holes may change by itself."""
    found, last = hashlib.blake2b(), -1
    with (room.lab.directory / "disk").open("rb") as source:
        for begin, end in disk.extents(source.fileno(), 4 << 30):
            for at in range(begin - begin % PIECE, end, PIECE):
                data = os.pread(source.fileno(), PIECE, at) if at > last else b""
                last = max(at, last)
                if data.strip(b"\0"):
                    found.update(b"%d " % at + data)
    return found.hexdigest()


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    """A machine whose disk was empty; root is logged in on what was installed there."""
    with (room.lab.directory / "disk").open("wb") as out:
        out.truncate(4 << 30)
    client = room.lab.add_client(
        memory=1024,
        extra=(
            "-drive", f"file={room.lab.directory / 'disk'},format=raw,if=none,id=disk0",
            "-device", "virtio-blk-pci,drive=disk0,bootindex=2",
        ),
    )  # fmt: skip
    provision(room, client, "lab@1")
    return client


def test_it_runs_from_its_disk_with_a_layer_of_its_own(room: Room, seat: Client) -> None:
    mounts = seat.shell("cat /proc/mounts", 60)
    assert "upperdir=/config/layers/local/upper" in mounts
    assert "etherd" not in mounts
    assert seat.shell("cat /etc/hostname") == "seat-52-54-00-00-00-01\n"
    assert "degraded" not in seat.shell("ls /run/pxed")
    assert room.server.client(seat.mac)["result"].startswith("installed lab@1 on vda, after ")


def test_no_unit_failed_and_the_system_is_good(seat: Client) -> None:
    seat.shell("systemctl is-system-running --wait", 300, check=False)
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain", 60)
    assert seat.shell("systemctl is-active pxed-good", 60) == "active\n"


def test_its_card_is_as_the_system_itself_has_it(seat: Client) -> None:
    # The root is not on it, so nothing of ours has a hand in it.
    assert "05-pxed" not in seat.shell("ls /run/systemd/network /run/NetworkManager/conf.d; true")
    assert "inet 10.9.9.9/24" in seat.shell("ip -4 addr show ens3", 60)


def test_the_account_is_locked_and_sudo_wants_a_password(seat: Client) -> None:
    assert seat.shell("passwd --status student").split()[:2] == ["student", "L"]
    assert "NOPASSWD" not in seat.shell("cat /etc/sudoers /etc/sudoers.d/*", check=False)


@pytest.fixture(scope="module")
def settings(room: Room, seat: Client, debian_next: Path) -> str:
    """What its user has set, in a machine that is off now; lab@2 is in the library."""
    seat.shell("echo mine > /etc/mine; echo homework > /home/student/work; echo x > /usr/bin/x")
    seat.shell("useradd teacher", 60)
    said = seat.shell(SETTINGS, 60)
    assert "homework" in said
    shut_down(seat)
    room.add(debian_next)
    return said


def test_support_that_is_over_leaves_the_disk_alone(
    room: Room, seat: Client, settings: str
) -> None:
    offer(room, "lab@2")
    before = digest(room)
    config = room.server.config
    text = config.read_text()
    config.write_text(text.replace("2099-12-31", "2020-01-01"))
    room.server.control.post("/v1/config/reload")
    said = result(room, seat)
    config.write_text(text)
    room.server.control.post("/v1/config/reload")
    assert said.startswith("kept vda: 2 was released 20")
    assert said.endswith("and support ended 2020-01-01; nothing was changed")
    assert digest(room) == before


def test_the_old_system_starts_until_the_new_one_has_run(
    room: Room, seat: Client, settings: str
) -> None:
    offer(room, "lab@2")
    assert result(room, seat).startswith("upgraded lab@1 to lab@2 on vda, after ")
    # The plug is pulled when the new one has the layer, and what was of the old version is aside.
    seat.power_on()
    seat.wait_for(r"(?s)from vda, system b.*pxed: [0-9.]+ config ", 300)
    seat.power_off()
    seat.power_on()
    seat.wait_for(r"(?s)from vda, system a.*login: ", 500)
    log_in(seat)
    assert seat.shell("cat /etc/pxed-image /usr/bin/x", 60) == "lab@1\nx\n"
    assert seat.shell(SETTINGS, 60) == settings
    shut_down(seat)


@pytest.fixture(scope="module")
def upgraded(room: Room, seat: Client, settings: str) -> Client:
    offer(room, "lab@2")
    provision(room, seat, "lab@2")
    return seat


def test_an_upgrade_keeps_settings_and_identity(
    room: Room, upgraded: Client, settings: str
) -> None:
    assert upgraded.shell(SETTINGS, 60) == settings
    assert "No such file" in upgraded.shell("cat /usr/bin/x", check=False)
    assert room.server.client(upgraded.mac)["result"].startswith("upgraded lab@1 to lab@2 on vda")
    upgraded.shell("systemctl is-system-running --wait", 300, check=False)
    assert upgraded.shell("systemctl is-active pxed-good", 60) == "active\n"
    shut_down(upgraded)


def test_an_older_version_leaves_the_disk_alone(room: Room, upgraded: Client) -> None:
    upgraded.power_off()
    offer(room, "lab@1")
    before = digest(room)
    assert result(room, upgraded) == (
        "kept vda: it has 2, which is not older than 1; nothing was changed"
    )
    assert digest(room) == before
