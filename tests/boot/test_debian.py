"""Debian without a disk: built by our builder, booted on BIOS and UEFI, and again. Long."""

import hashlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxed.client.debian import build_debian
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from tests.boot.conftest import PROGRAMS, Room
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1200)]

# ifupdown would take the card down at shutdown, and the root with it.
SCRIPT = b"""#!/bin/sh
set -eu
passwd --quiet --delete root
printf 'auto ens3\\niface ens3 inet static\\n address 10.9.9.9/24\\n' >> /etc/network/interfaces
"""


def build(directory: Path, initramfs: str = "initramfs-tools") -> Path:
    build_debian(
        directory,
        name="lab",
        version="1",
        kernel="linux-image-cloud-amd64",
        packages=("ifupdown",),
        script=SCRIPT,
        user="student",
        initramfs=initramfs,
    )
    return directory


@pytest.fixture(scope="session")
def debian_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires(*PROGRAMS, "mmdebstrap", "unshare")
    return build(tmp_path_factory.mktemp("debian") / "1")


@pytest.fixture(scope="module")
def room(debian_image: Path) -> Iterator[Room]:
    with Lab() as lab:
        yield Room(lab, debian_image)


def power_on(client: Client) -> None:
    """From off to root's shell on the serial console."""
    client.power_on()
    client.wait_for("login: ", 400)
    client.send("root\n")
    client.wait_for(r"root@[^\n]*# ", 60)


def eventually(true: Callable[[], bool], limit: float = 60) -> bool:
    until = time.monotonic() + limit
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    client = room.lab.add_client(memory=1024)
    power_on(client)
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


def test_the_card_under_the_root_stays_up(seat: Client) -> None:
    said = seat.shell("networkctl status ens3 --no-pager --lines=0", 60)
    assert "/run/systemd/network/05-pxed-" in said
    seat.shell("systemctl restart systemd-networkd; systemctl stop systemd-networkd", 60)
    seat.shell("systemctl stop networking", 60)
    assert "state UP" in seat.shell("ip link show ens3")
    seat.shell("echo 3 > /proc/sys/vm/drop_caches; ls -R /usr/share/doc > /dev/null", 60)
    seat.shell("systemctl start systemd-networkd networking", 60)


def test_files_packages_and_identity_outlive_a_clean_shutdown(room: Room, seat: Client) -> None:
    seat.shell("echo precious > /home/student/mine")
    seat.shell(
        "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin; printf '#!/bin/sh\\necho it works\\n' "
        "> /tmp/p/usr/bin/own-tool; chmod 755 /tmp/p/usr/bin/own-tool; printf 'Package: own-tool\\n"
        "Version: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: tool\\n' "
        "> /tmp/p/DEBIAN/control; dpkg-deb -b /tmp/p /tmp/own-tool.deb"
    )
    seat.shell("apt-get install -y /tmp/own-tool.deb", 180)
    before = seat.shell("cat /etc/machine-id /etc/hostname")
    assert re.fullmatch(r"[0-9a-f]{32}\nseat-52-54-00-00-00-01\n", before)

    seat.send("systemctl poweroff\n")
    assert eventually(lambda: not seat.running, 120), seat.console()[-1000:]
    layer = room.state / "config/midlayers/525400000001.ext4"
    shown = subprocess.run(
        ["dumpe2fs", "-h", str(layer)], check=True, capture_output=True, text=True
    ).stdout
    assert "needs_recovery" not in shown

    seat.power_off()
    power_on(seat)
    assert seat.shell("cat /home/student/mine") == "precious\n"
    assert seat.shell("own-tool; dpkg-query -W own-tool") == "it works\nown-tool\t1\n"
    assert seat.shell("cat /etc/machine-id /etc/hostname") == before
    assert room.server.client(seat.mac)["boots"] == 2


@pytest.mark.parametrize("firmware", ["uefi"])
def test_another_machine_is_another_machine(room: Room, seat: Client, firmware: Firmware) -> None:
    other = room.lab.add_client(firmware=firmware, memory=1024)
    power_on(other)
    assert other.shell("cat /etc/machine-id") != seat.shell("cat /etc/machine-id")
    assert other.shell("cat /etc/hostname") == "seat-52-54-00-00-00-02\n"
    assert "mine" not in other.shell("ls /home/student")
    assert "own-tool" not in other.shell("ls /usr/bin")


def test_dracut_starts_it_alike(debian_image: Path, tmp_path: Path) -> None:
    assert debian_image.is_dir()
    with Lab() as lab:
        room = Room(lab, build(tmp_path / "dracut", "dracut"))
        client = lab.add_client(memory=1024)
        power_on(client)
        assert eventually(lambda: "running" in room.stages(client))
        assert {"root mounted", "/config mounted"} <= set(room.stages(client))
        mounts = client.shell("cat /proc/mounts")
        assert "upperdir=/config/layers/lab@1/upper" in mounts
        assert "/dev/etherd/e16.3 /config ext4 rw" in mounts
        assert "0 loaded units listed" in client.shell("systemctl --failed --no-pager --plain")
        assert "05-pxed-ens3" in client.shell("ls /run/systemd/network")
        client.send("systemctl poweroff\n")
        assert eventually(lambda: not client.running, 120), client.console()[-1000:]


def test_the_same_input_of_the_same_day_gives_the_same_bytes(
    debian_image: Path, tmp_path: Path
) -> None:
    again = build(tmp_path / "again")
    for name in ("root.squashfs", "initrd", "boot.img", "manifest.json"):
        first, second = (
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for folder in (debian_image, again)
        )
        assert first == second, name
