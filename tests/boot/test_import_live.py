"""Live systems of others, served over AoE to initramfses that are not ours. Long.

Nothing of ours is in these systems: their roots and initramfses are made of Debian's packages.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from pxed.lab.server import LabServer
from tests.boot.conftest import PROGRAMS
from tests.boot.debian import eventually, power_on
from tests.boot.others import by_dracut, initramfs, kernel, release, root_of, squash
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1500)]

PACKAGES = (
    "linux-image-cloud-amd64", "dracut-core", "dmsetup", "parted", "dialog", "xfsprogs", "fdisk",
    "iputils-arping", "isc-dhcp-client", "procps", "live-boot", "live-boot-initramfs-tools",
)  # fmt: skip
MODULES = ("kiwi-dracut-live", "dracut-live", "dracut-network")
HTTP = '[class.x86]\nboot = "kernel"\n'


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the live systems."""
    requires(*PROGRAMS, "mmdebstrap", "mke2fs", "xorriso", "dpkg-deb")
    place = tmp_path_factory.mktemp("live")
    return root_of(place, "live", PACKAGES, MODULES)


def iso(tree: Path, target: Path) -> Path:
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE", "-o", str(target), str(tree)],
        check=True, capture_output=True,
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def kiwi(root: Path) -> Path:
    """An ISO as kiwi lays it out: an ext4 in a squashfs, and dracut's initramfs with kiwi-live."""
    tree, inner = root.parent / "kiwi", root.parent / "inner"
    for folder in (tree / "LiveOS", tree / "boot/x86_64/loader", inner / "LiveOS"):
        folder.mkdir(parents=True)
    ext4 = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(inner / "LiveOS/rootfs.img"), "800M"]
    subprocess.run(ext4, check=True)
    squash(inner, tree / "LiveOS/squashfs.img")
    kernel(root, tree / "boot/x86_64/loader/linux")
    by_dracut(root, tree / "boot/x86_64/loader/initrd", "kiwi-live")
    return iso(tree, root.parent / "kiwi.iso")


@pytest.fixture(scope="module")
def dmsquash(root: Path) -> Path:
    """A directory as of a Fedora-like medium, whose initramfs knows nothing of AoE."""
    tree = root.parent / "dmsquash"
    for folder in (tree / "LiveOS", tree / "images/pxeboot"):
        folder.mkdir(parents=True)
    squash(root, tree / "LiveOS/squashfs.img")
    kernel(root, tree / "images/pxeboot/vmlinuz")
    by_dracut(root, tree / "images/pxeboot/initrd.img", "dmsquash-live")
    return tree


@pytest.fixture(scope="module")
def debian_live(root: Path) -> Path:
    """An ISO as Debian's own: live-boot, which knows nothing of AoE."""
    tree = root.parent / "debian"
    (tree / "live").mkdir(parents=True)
    squash(root, tree / "live/filesystem.squashfs")
    kernel(root, tree / f"live/vmlinuz-{release(root)}")
    initramfs(root, tree / f"live/initrd.img-{release(root)}", "sh", "-c",
              f'mkinitramfs -o "$0" {release(root)}')  # fmt: skip
    return iso(tree, root.parent / "debian.iso")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def boot(
    lab: Lab, source: Path, firmware: Firmware, more: str = "", words: tuple[str, ...] = ()
) -> tuple[LabServer, Client, dict[str, Any]]:
    """Import, serve, and start one seat up to root's shell."""
    state = lab.directory / "state"
    argv = [sys.executable, "-m", "pxed", "image", "import", str(source), "--name", "live",
            "--version", "1", "--state-dir", str(state), "--json", *words]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    assert "a live system" in shown["diskless_only"]
    server = LabServer(lab, state, more)
    server.start()
    seat = lab.add_client(firmware=firmware, memory=1024)
    power_on(seat)
    assert seat.shell("cat /etc/hostname") == "live\n"
    seat.shell("echo mine > /root/mine && sync")
    return server, seat, shown


def test_kiwis_own_initramfs_finds_its_root_by_its_own_word(lab: Lab, kiwi: Path) -> None:
    _, seat, shown = boot(lab, kiwi, "bios", words=("--initramfs", "its"))
    assert shown["origin"]["root"] == "LiveOS/squashfs.img, kiwi"
    assert "root=live:AOEINTERFACE=e16.1" in seat.shell("cat /proc/cmdline")
    assert "/dev/etherd/e16.1" in seat.shell("cat /proc/mounts")


def test_kiwis_by_kernel_boot_on_uefi(lab: Lab, kiwi: Path) -> None:
    server, seat, _ = boot(lab, kiwi, "uefi", HTTP)
    assert "BOOTIF=01-52-54" in seat.shell("cat /proc/cmdline")
    # It tells nothing of itself, and reads its root: that is a seat that runs.
    assert eventually(lambda: server.client(seat.mac)["state"] == "running", 180)


def test_dracuts_dmsquash_live_with_aoe_added(lab: Lab, dmsquash: Path) -> None:
    _, seat, shown = boot(lab, dmsquash, "bios", HTTP)
    assert shown["origin"]["root"] == "LiveOS/squashfs.img, dracut"
    assert "LiveOS_rootfs / overlay" in seat.shell("cat /proc/mounts")
    assert "e16.1" in seat.shell("ls /dev/etherd")


def test_debians_live_boot_with_aoe_added(lab: Lab, debian_live: Path) -> None:
    _, seat, shown = boot(lab, debian_live, "bios")
    assert shown["origin"]["kind"] == "ISO"
    assert "/dev/etherd/e16.1 /run/live/medium iso9660" in seat.shell("cat /proc/mounts")
