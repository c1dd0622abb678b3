"""Disks that are put together while they are sent, read by dosfstools and mtools."""

import subprocess
from pathlib import Path

import pytest

from pxed.errors import UsageError
from pxed.http.fatdisk import FatDisk
from tests.conftest import requires


def written(files: dict[str, bytes | Path], folder: Path) -> Path:
    disk, out = FatDisk(files), folder / "disk.img"
    with out.open("wb") as image:
        for piece in disk.pieces():
            content = piece.path.read_bytes() if piece.path else piece.content
            assert len(content) <= piece.size
            image.write(content.ljust(piece.size, b"\0"))
        assert image.tell() == disk.size
    return out


def checked(image: Path) -> None:
    requires("fsck.fat", "mcopy", root=False)
    done = subprocess.run(["fsck.fat", "-n", str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == 2, done.stdout  # its name and a count: no complaint


def content(image: Path, name: str) -> bytes:
    argv = ["mcopy", "-i", str(image), f"::/{name}", "-"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


@pytest.mark.parametrize("large", [0, 1, 511, 512, 4_000_000, 40_000_000, 150_000_000])
def test_every_file_is_there_whatever_its_size(tmp_path: Path, large: int) -> None:
    """From 512-byte clusters on, to several times that; sectors that need 16 bits, and 32."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(large)
        if large:
            file.seek(large - 1)
            file.write(b"!")
    files: dict[str, bytes | Path] = {
        "EFI/BOOT/BOOTX64.EFI": b"shim" * 1000, "EFI/BOOT/GRUBX64.EFI": source,
        "grub/grub.cfg": b"boot\n", "empty": b"",
    }  # fmt: skip
    image = written(files, tmp_path)
    checked(image)
    for name, what in files.items():
        expected = what.read_bytes() if isinstance(what, Path) else what
        assert content(image, name) == expected
    image.unlink()


def test_a_folder_of_more_than_a_cluster(tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {f"a/b/{n}": str(n).encode() for n in range(100)}
    image = written(files, tmp_path)
    checked(image)
    assert content(image, "A/B/99") == b"99"


def test_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {"a/b": b"x", "c": b"y"}
    assert list(FatDisk(files).pieces()) == list(FatDisk(files).pieces())


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        FatDisk({"a": tmp_path / "none"})
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(UsageError, match="do not fit"):
        FatDisk({"a": huge})
