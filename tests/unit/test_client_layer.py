"""What a seat's initramfs takes for a damaged layer: run by busybox, as it is there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import requires

FUNCTIONS = Path(__file__).parents[2] / "pxed/client/functions.sh"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A root directory with busybox, a shared root at /lower and the seat's at /seat."""
    requires("busybox")
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot")
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tmp_path / "busybox")
    shutil.copy(FUNCTIONS, tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").touch()
    for top in ("lower", "seat"):
        for name in ("etc", "usr/sbin"):
            (tmp_path / top / name).mkdir(parents=True)
        (tmp_path / top / "etc/passwd").touch()
        (tmp_path / top / "sbin").symlink_to("usr/sbin")
    return tmp_path


def entered(world: Path) -> bool:
    words = ["chroot", str(world), "/busybox", "sh", "-euc", ". /functions.sh; entered /seat"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    return run.returncode == 0


def test_a_directory_that_is_empty_in_the_image_is_no_damage(world: Path) -> None:
    assert entered(world)


def test_a_directory_that_has_lost_its_names_is(world: Path) -> None:
    (world / "lower/usr/sbin/init").touch()
    assert not entered(world)
    (world / "seat/usr/sbin/init").touch()
    assert entered(world)


def test_a_link_that_leads_nowhere_in_the_image_is_no_damage(world: Path) -> None:
    for top in ("lower", "seat"):
        (world / top / "sbin").unlink()
        (world / top / "sbin").symlink_to("run/programs")
    assert entered(world)
