"""Debian on one diskless seat: what the server sees of it, and what manages its card. Long."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.conftest import Room
from tests.boot.debian import KERNEL, eventually, power_on, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def room(debian_image: Path) -> Iterator[Room]:
    with Lab() as lab:
        yield Room(lab, debian_image)


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    client = room.lab.add_client(memory=1024)
    power_on(client)
    # The login prompt is there before all services are; what failed is looked for below.
    client.shell("systemctl is-system-running --wait", 300, check=False)
    return client


def test_the_server_saw_every_step(room: Room, seat: Client) -> None:
    assert eventually(lambda: "running" in room.stages(seat))
    assert room.stages(seat) == [
        "DISCOVER",
        "OFFER",
        "iPXE",
        "first AoE read",
        "kernel up",
        "root mounted",
        "/config mounted",
        "running",
    ]


def test_its_layer_lies_on_its_own_config(seat: Client) -> None:
    mounts = seat.shell("cat /proc/mounts")
    assert re.search(
        r"root / overlay rw\S*,lowerdir=/lower,upperdir=/config/layers/lab@1/upper", mounts
    )
    assert "/dev/etherd/e16.3 /config ext4 rw" in mounts
    assert "degraded" not in seat.shell("ls /run/pxed")


def test_no_unit_failed(seat: Client) -> None:
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain")


def test_the_console_has_the_keyboard_that_the_image_was_built_for(seat: Client) -> None:
    # The key between T and U: z on a German one, y on the kernel's own.
    assert re.search(r"keycode +21 = \+?z ", seat.shell("dumpkeys -C /dev/tty1"))


def test_the_kernel_that_the_server_loads_is_not_upgraded_in_its_layer(seat: Client) -> None:
    release = seat.shell("uname -r").strip()
    assert seat.shell("apt-mark showhold").split() == [f"linux-image-{release}", KERNEL]
    assert "Not updating initramfs" in seat.shell("update-initramfs -u", 60)
    # As a kernel's package calls it that is installed all the same.
    assert "Not making an initramfs" in seat.shell("update-initramfs -c -k 6.99 -b /boot", 60)


def reads_its_root(seat: Client) -> None:
    """The link under the root is up, and what is not in memory can be had."""
    assert "state UP" in seat.shell("ip link show ens3")
    seat.shell("echo 3 > /proc/sys/vm/drop_caches; ls -R /usr/share/doc > /dev/null", 200)


def test_systemd_networkd_keeps_the_card_under_the_root(seat: Client) -> None:
    said = seat.shell("networkctl status ens3 --no-pager --lines=0", 200)
    assert "/run/systemd/network/05-pxed-" in said
    seat.shell("systemctl restart systemd-networkd; systemctl stop systemd-networkd", 200)
    reads_its_root(seat)
    seat.shell("systemctl start systemd-networkd", 200)
    reads_its_root(seat)


def test_ifupdown_keeps_the_card_under_the_root(seat: Client) -> None:
    seat.shell("systemctl restart networking", 200, check=False)
    seat.shell("systemctl stop networking", 200)
    reads_its_root(seat)
    seat.shell("systemctl start networking", 200, check=False)


def test_network_manager_keeps_its_hands_off_the_card_under_the_root(seat: Client) -> None:
    assert seat.shell("systemctl is-active NetworkManager") == "active\n"
    assert "ens3:unmanaged" in seat.shell("nmcli -c no -t -f DEVICE,STATE device", 200)
    seat.shell("nmcli device disconnect ens3", 200, check=False)
    reads_its_root(seat)
    seat.shell("nmcli networking off", 200)
    reads_its_root(seat)
    seat.shell("nmcli networking on; systemctl restart NetworkManager", 200)
    reads_its_root(seat)
    seat.shell("systemctl stop NetworkManager", 200)
    reads_its_root(seat)
    seat.shell("systemctl start NetworkManager", 200)


def test_a_clean_shutdown_leaves_a_clean_layer(room: Room, seat: Client) -> None:
    shut_down(seat)
    layer = room.state / "config/midlayers/525400000001.ext4"
    shown = subprocess.run(
        ["dumpe2fs", "-h", str(layer)], check=True, capture_output=True, text=True
    ).stdout
    assert "needs_recovery" not in shown
