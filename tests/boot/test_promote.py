"""An installed Debian, promoted while it runs or from its own disk, and booted by a seat. Long."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.conftest import PROGRAMS, Room
from tests.boot.debian import eventually, installed, power_on
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (
    "linux-image-cloud-amd64", "ifupdown", "python3", "squashfs-tools", "syslinux", "fdisk",
    "syslinux-common", "mtools", "dosfstools", "systemd-boot-efi", "binutils", "openssh-server",
)  # fmt: skip
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
FSTAB = """# of the machine that is promoted
UUID=0b0b0b0b-0000-4000-8000-000000000000 / ext4 errors=remount-ro 0 1
UUID=0b0b0b0b-0000-4000-8000-000000000001 none swap sw 0 0
UUID=0B0B-0B0B /boot/efi vfat umask=0077 0 1
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of an installed machine: one ext4, with all that must not reach a seat."""
    requires(*PROGRAMS, "mmdebstrap", "mke2fs")
    place = tmp_path_factory.mktemp("machine")
    root = installed(place, PACKAGES)
    files = {
        "etc/fstab": FSTAB, "etc/hostname": "server\n", "etc/machine-id": "deadbeef" * 4 + "\n",
        "etc/ssh/ssh_host_rsa_key": "secret\n", "home/anna/mine": "from the machine\n",
        "srv/big/data": "not for seats\n", "etc/pxed/pxed.toml": "interface = \"ens3\"\n",
        "etc/systemd/system/pxed.service": "[Service]\nExecStart=/bin/false\n"
        "[Install]\nWantedBy=multi-user.target\n",
        "etc/network/interfaces": "auto lo\niface lo inet loopback\nauto ens3\n"
        "iface ens3 inet static\n address 10.77.0.1/24\n",
        "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    wants = root / "etc/systemd/system/multi-user.target.wants/pxed.service"
    wants.symlink_to("/etc/systemd/system/pxed.service")
    target = place / "disk.img"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(target), "1400M"], check=True
    )
    subprocess.run(["rm", "-rf", str(root)], check=True)
    return target


@pytest.fixture
def device(disk: Path) -> Iterator[str]:
    """That disk as a block device."""
    loop = ["losetup", "--find", "--show", str(disk)]
    name = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


RUNNING = """set -eu
mount --make-rprivate /
mount "$1" "$2"
mkdir -p "$2/var/lib/pxed" "$2$4"
mount --bind "$3" "$2/var/lib/pxed"
mount --bind "$4" "$2$4"
for each in dev proc sys; do mount --rbind "/$each" "$2/$each"; done
mount -t tmpfs run "$2/run"
ROOT=$2
shift 4
exec chroot "$ROOT" env HOME=/root PXED_CACHE=/var/lib/pxed/cache "$@"
"""


def promote_running(device: str, place: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """``pxed promote`` inside the machine: its disk is / there, mounted read-write."""
    (place / "root").mkdir(exist_ok=True)
    (place / "state").mkdir(exist_ok=True)
    root = str(place / "root")
    argv = ["unshare", "--mount", "--", "sh", "-c", RUNNING, "running", device, root,
            str(place / "state"), str(REPOSITORY),
            sys.executable, "-m", "pxed", "promote", *words]  # fmt: skip
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"PATH": PATH},
        timeout=900,
    )  # fmt: skip


def is_a_seat(room: Room, client: Client) -> None:
    """What must be true of a promoted system on a seat, however it came there."""
    assert eventually(lambda: "running" in room.stages(client), 300)
    assert client.shell("cat /home/anna/mine") == "from the machine\n"
    assert client.shell("hostname") == "seat-52-54-00-00-00-01\n"
    assert "deadbeef" not in client.shell("cat /etc/machine-id")
    # It makes the keys; until then some files come and go.
    client.shell("systemctl start ssh.service", 300)
    assert "secret" not in client.shell("cat /etc/ssh/ssh_host_*")
    assert "swap" not in client.shell("cat /etc/fstab")
    assert "10.77.0.1/24" not in client.shell("ip -4 addr; cat /etc/network/interfaces")
    assert "masked" in client.shell("systemctl is-enabled pxed.service", check=False)
    assert "0 loaded units listed" in client.shell("systemctl --failed --no-pager --plain", 60)
    assert "upperdir=/config/layers/lab@1/upper" in client.shell("cat /proc/mounts")


def test_a_machine_that_runs_becomes_the_image(device: str, tmp_path: Path) -> None:
    done = promote_running(
        device, tmp_path, "--name", "lab", "--version", "1", "--exclude", "/srv/big", "--no-serve"
    )
    assert done.returncode == 0, done.stderr
    image = tmp_path / "state/images/lab/1"
    assert json.loads((tmp_path / "state/promoted.json").read_text())["image"] == "lab@1"
    with Lab() as lab:
        room = Room(lab, image)
        seat = lab.add_client(memory=1024)
        power_on(seat)
        is_a_seat(room, seat)
        assert seat.shell("ls -A /srv/big /boot /var/lib/pxed | grep -v :") == "\n\n"
        assert "root / overlay" in seat.shell("cat /proc/mounts")


def test_a_disk_that_nobody_has_mounted_is_served_where_it_is(
    device: str, disk: Path, tmp_path: Path
) -> None:
    before = disk.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-m", "pxed", "promote", "--root", device, "--name", "lab", "--version",
         "1", "--no-serve", "--state-dir", str(tmp_path / "state")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = tmp_path / "state/images/lab/1"
    assert json.loads((image / "manifest.json").read_text())["devices"]["root"] == device
    with Lab() as lab:
        room = Room(lab, image)
        seat = lab.add_client(memory=1024)
        power_on(seat)
        is_a_seat(room, seat)
        said = len(seat.console())  # its first boot may ask for a login twice
        seat.send("systemctl reboot\n")
        assert eventually(lambda: room.server.client(seat.mac)["boots"] == 2, 400)
        again = re.compile(r"pxed: [0-9.]+ kernel[\s\S]*login: ")
        assert eventually(lambda: again.search(seat.console()[said:]) is not None, 400)
    assert disk.stat().st_mtime_ns == before, "the machine's disk was written to"
