"""The same image of the same day, built twice on machines that are not alike: the same bytes."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pxed.client.kernel import fetch_kernel
from tests import piroot
from tests.conftest import from_mirror, requires

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1200)]

RELEASE = "6.6.31+rpt-rpi-v8"
EPOCH = "1767225600"  # 2026-01-01
BUILD = """\
hostname "$1" && umask "$2" && cd "$3" && shift 3 && exec "$@"
"""


def build(place: Path, host: str, umask: str, words: list[str], **env: str) -> dict[str, str]:
    """The digests of an image that ``pxed image build`` makes as a certain machine would."""
    (place / "tmp").mkdir(parents=True)
    argv = [sys.executable, "-m", "pxed", "image", "build", *words, "--version", "1",
            "--state-dir", str(place / "state")]  # fmt: skip
    subprocess.run(
        ["unshare", "--uts", "sh", "-c", BUILD, "sh", host, umask, str(place), *argv],
        env={**os.environ, "TMPDIR": str(place / "tmp"), "SOURCE_DATE_EPOCH": EPOCH, **env},
        check=True, capture_output=True, timeout=500,
    )  # fmt: skip
    (image,) = (place / "state/images").glob("*/1")
    return {
        str(path.relative_to(image)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(image.rglob("*"))
        if path.is_file() and path.name != "build.log"
    }


def twice(tmp_path: Path, words: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Built by two machines that have nothing in common but their packages, not at one time."""
    first = build(tmp_path / "a", "alpha", "022", words, LC_ALL="C.UTF-8", TZ="UTC")
    time.sleep(2.1)  # FAT counts two seconds as one
    return (
        first,
        build(
            tmp_path / "another/directory", "beta", "077", words,
            LC_ALL="POSIX", LANG="de_DE.UTF-8", TZ="Pacific/Kiritimati", HOME="/",
            PYTHONHASHSEED="7",
        ),
    )  # fmt: skip


def test_the_minimal_image_with_its_maintenance_disk(tmp_path: Path) -> None:
    requires("mksquashfs", "mcopy", "syslinux", "grub-mkimage", "sfdisk", "unshare", "hostname")
    first, second = twice(tmp_path, ["minimal", "--name", "lab"])
    assert {"boot.img", "root.squashfs", "tfm.img", "manifest.json", "initrd.tfm"} <= first.keys()
    assert first == second


def test_a_raspberry_pis_image(tmp_path: Path) -> None:
    requires("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf", "xz", "unshare", "hostname")
    with from_mirror():
        kernel = fetch_kernel()
    root = tmp_path / "root"
    piroot.put_boot(root / "boot", piroot.kernel_image(RELEASE))
    piroot.put_modules(root, kernel, RELEASE)
    piroot.put_system(root, {"bin/busybox": piroot.program()})
    first, second = twice(tmp_path, ["raspios-like", str(root), "--name", "pi"])
    assert {"boot.img", "root.squashfs", "manifest.json", "firmware/initramfs"} <= first.keys()
    assert first == second


def test_another_day_is_another_image(tmp_path: Path) -> None:
    requires("mksquashfs", "mcopy", "syslinux", "unshare", "hostname")
    words = ["minimal", "--name", "lab", "--no-maintenance"]
    first = build(tmp_path / "a", "alpha", "022", words)
    second = build(tmp_path / "b", "alpha", "022", words, SOURCE_DATE_EPOCH=str(int(EPOCH) + 86400))
    assert first["root.squashfs"] != second["root.squashfs"]
    assert first["vmlinuz"] == second["vmlinuz"]
