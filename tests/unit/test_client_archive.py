"""The initramfs archive, read back by cpio itself."""

import subprocess
from pathlib import Path

import pytest

from pxed.client.archive import Cpio
from tests.conftest import requires


def _sample() -> Cpio:
    archive = Cpio()
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("etc/deep/odd", b"x" * 4097)
    archive.file("etc/empty", b"")
    archive.symlink("bin/sh", "busybox")
    archive.directory("proc")
    return archive


def test_cpio_unpacks_what_went_in(tmp_path: Path) -> None:
    requires("cpio", root=False)
    subprocess.run(["cpio", "-idm", "--quiet"], input=bytes(_sample()), cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc/deep/odd").read_bytes() == b"x" * 4097
    assert (tmp_path / "etc/empty").read_bytes() == b""
    assert (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert (tmp_path / "proc").is_dir()


def test_parents_come_first_and_once() -> None:
    requires("cpio", root=False)
    listed = subprocess.run(
        ["cpio", "-it", "--quiet"], input=bytes(_sample()), capture_output=True, check=True
    ).stdout.split()
    assert listed == [
        b"init", b"etc", b"etc/deep", b"etc/deep/odd", b"etc/empty", b"bin", b"bin/sh", b"proc",
    ]  # fmt: skip


def test_same_content_same_bytes() -> None:
    assert bytes(_sample()) == bytes(_sample())


def test_a_name_cannot_come_twice() -> None:
    archive = _sample()
    with pytest.raises(ValueError, match="init is in the archive"):
        archive.file("init", b"")
