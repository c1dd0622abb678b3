"""Debian without a disk, twice: both firmwares, both ways to load, both makers of an initramfs.

The first boot is from the AoE disk, the second by HTTP, and finds what the first one left. Long.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from tests.boot.conftest import Room
from tests.boot.debian import boot_by, eventually, loaded, power_on, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1200)]

FIRMWARES: tuple[Firmware, ...] = ("bios", "uefi")


@pytest.fixture(scope="module", params=["initramfs-tools", "dracut"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    image: Path = request.getfixturevalue(
        "debian_image" if request.param == "initramfs-tools" else "dracut_image"
    )
    with Lab() as lab:
        yield Room(lab, image)


def is_a_seat(room: Room, seat: Client) -> None:
    """The stages of this boot, its layer, and nothing that failed."""
    assert eventually(lambda: "running" in room.stages(seat), 120), seat.console()[-1000:]
    assert {"root mounted", "/config mounted"} <= set(room.stages(seat))
    mounts = seat.shell("cat /proc/mounts")
    assert "upperdir=/config/layers/lab@1/upper" in mounts
    assert "/dev/etherd/e16.3 /config ext4 rw" in mounts
    assert "degraded" not in seat.shell("ls /run/pxed")
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain", 60)
    assert "05-pxed-ens3" in seat.shell("ls /run/systemd/network")


def install_a_package(seat: Client) -> None:
    """With apt, a package of our own: the lab has no mirror."""
    seat.shell(
        "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin; printf '#!/bin/sh\\necho it works\\n' "
        "> /tmp/p/usr/bin/own-tool; chmod 755 /tmp/p/usr/bin/own-tool; printf 'Package: own-tool\\n"
        "Version: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: tool\\n' "
        "> /tmp/p/DEBIAN/control; dpkg-deb -b /tmp/p /tmp/own-tool.deb"
    )
    seat.shell("apt-get install -y /tmp/own-tool.deb", 240)


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_what_the_first_boot_left_is_there_in_the_second(room: Room, firmware: Firmware) -> None:
    boot_by(room, "san")
    seat = room.lab.add_client(firmware=firmware, memory=1024)
    power_on(seat)
    is_a_seat(room, seat)
    assert "BOOTIF" not in seat.shell("cat /proc/cmdline")
    others = [each for each in room.lab.clients if each is not seat]
    assert "mine" not in seat.shell("ls /home/student")
    assert "own-tool" not in seat.shell("ls /usr/bin")
    seat.shell(f"echo of {seat.name} > /home/student/mine")
    install_a_package(seat)
    before = seat.shell("cat /etc/machine-id /etc/hostname")
    assert before.split()[1] == f"seat-{seat.mac.replace(':', '-')}"
    for other in others:
        assert before.split()[0] not in other.console(everything=True)
    shut_down(seat)

    boot_by(room, "kernel")
    power_on(seat)
    is_a_seat(room, seat)
    assert f"BOOTIF=01-{seat.mac.replace(':', '-')}" in seat.shell("cat /proc/cmdline")
    assert "/image/lab@1/vmlinuz" in loaded(room, seat)
    assert seat.shell("cat /home/student/mine") == f"of {seat.name}\n"
    assert seat.shell("own-tool; dpkg-query -W own-tool") == "it works\nown-tool\t1\n"
    assert seat.shell("cat /etc/machine-id /etc/hostname") == before
    assert room.server.client(seat.mac)["boots"] == 2
    seat.power_off()
