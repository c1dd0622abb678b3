"""A Debian for arm64 with systemd as a Pi's root: what Raspberry Pi OS is, but for its kernel.

Long. Its packages are unpacked and configured under qemu-user, in namespaces of the test's own.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.client.debs import fetch_package
from pxed.client.kernel import Kernel
from pxed.client.raspios import build_raspios
from pxed.errors import HostError
from pxed.lab.lab import Lab
from tests import foreign, piroot
from tests.boot.debian import eventually
from tests.boot.test_pi import Room, make_room
from tests.conftest import from_mirror, requires
from tests.netns.test_rpi import MAC_4

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1800)]

PACKAGES = "systemd-sysv,udev,kmod,dbus,busybox,e2fsprogs,iproute2"
MIRROR = "deb http://deb.debian.org/debian bookworm main"


@pytest.fixture(scope="session")
def debian_arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar archive of the root, with what Raspberry Pi OS has in its boot directory."""
    requires("mmdebstrap", "qemu-system-aarch64", "mksquashfs", "xz", "depmod", "mcopy")
    work = tmp_path_factory.mktemp("debian-arm64")
    with from_mirror():
        package = fetch_package("linux-image-arm64", "arm64")
        command = foreign.argv(
            "mmdebstrap", "--mode=root", "--skip=check/qemu", "--architectures=arm64",
            "--variant=minbase", f"--include={PACKAGES}", '--aptopt=APT::Sandbox::User "root"',
            '--customize-hook=chroot "$1" passwd --delete root',
            '--customize-hook=chroot "$1" useradd --create-home pi', "bookworm",
            str(work / "root.tar"), MIRROR,
        )  # fmt: skip
        made = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(work)}
        )
        if made.returncode != 0:
            raise HostError(f"mmdebstrap: {made.stderr[-2000:]}")
    root = work / "root"
    root.mkdir()
    subprocess.run(
        ["tar", "-C", str(root), "--xattrs", "--xattrs-include=*", "-xpf", str(work / "root.tar")],
        check=True,
    )
    (modules,) = (package / "lib/modules").iterdir()
    kernel = Kernel(package, modules.name)
    piroot.put_boot(root / "boot/firmware", kernel.vmlinuz.read_bytes())
    piroot.put_modules(root, kernel, kernel.release)
    shutil.copyfile(
        package / f"boot/config-{kernel.release}", root / f"boot/config-{kernel.release}"
    )
    (root / "etc/hostname").write_text("raspberrypi\n")
    (root / "etc/fstab").write_text("PARTUUID=4e639091-02 / ext4 defaults 0 1\n")
    return root


@pytest.fixture(scope="module")
def room(debian_arm64: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    image = tmp_path_factory.mktemp("images") / "1"
    # Else systemd says what it starts, in the middle of what the shell says.
    words = "console=ttyAMA0 quiet loglevel=3"
    assert build_raspios(image, debian_arm64, name="pi", version="1", cmdline=words) == []
    with Lab() as lab:
        # The system's own DHCP is answered too.
        settings = '[dhcp]\nmode = "all"\ndns = ["10.77.0.1", "10.77.0.9"]\n'
        room = make_room(lab, image, settings, memory=1024)
        start(room)
        yield room


def start(room: Room) -> None:
    """As a Pi's firmware, and then to root's shell."""
    room.seat.power_off()  # or the switch sends it what is for the firmware
    room.load()
    room.seat.power_on()
    room.seat.wait_for("login: ", 500)
    room.seat.send("root\n")
    room.seat.wait_for(r"root@[^\n]*# ", 60)


def stages(room: Room) -> list[str]:
    return [step["stage"] for step in room.server.client(MAC_4)["timeline"]]


def test_it_runs_with_systemd_and_says_so(room: Room) -> None:
    assert eventually(lambda: "running" in stages(room), 120)
    assert [stage for stage in stages(room) if stage != "first AoE read"] == [
        "DISCOVER", "OFFER", "boot file", "kernel up", "root mounted", "/config mounted", "running",
    ]  # fmt: skip
    assert room.seat.shell("uname -m").strip() == "aarch64"
    assert "0 loaded units listed" in room.seat.shell("systemctl --failed --no-pager --plain")


def test_it_is_a_seat_of_its_own(room: Room) -> None:
    assert room.seat.shell("hostname").strip() == "seat-" + MAC_4.replace(":", "-")
    mounts = room.seat.shell("cat /proc/mounts")
    assert "upperdir=/config/layers/pi@1/upper" in mounts
    assert "/dev/etherd/e17.3 /config ext4 rw" in mounts
    ask = "networkctl status eth0 --no-pager --lines=0"
    assert eventually(lambda: "/run/systemd/network/05-pxed-" in room.seat.shell(ask, 60), 120)


def test_it_knows_its_name_servers(room: Room) -> None:
    wanted = ["nameserver 10.77.0.1", "nameserver 10.77.0.9"]
    assert eventually(
        lambda: room.seat.shell("cat /etc/resolv.conf").splitlines()[:2] == wanted, 120
    )


def test_files_accounts_and_identity_are_there_after_a_reset(room: Room) -> None:
    identity = room.seat.shell("cat /etc/machine-id").strip()
    assert len(identity) == 32
    room.seat.shell("useradd --create-home anna && echo mine > /home/anna/file && sync", 60)
    start(room)
    assert room.seat.shell("cat /home/anna/file").strip() == "mine"
    assert room.seat.shell("cat /etc/machine-id").strip() == identity
    assert room.server.client(MAC_4)["boots"] == 2
    assert "pi" in room.seat.shell("ls /home").split()
