"""The boot disk, read back by sfdisk and mtools: what BIOS and UEFI firmware will look at."""

import itertools
import json
import struct
import subprocess
from pathlib import Path

import pytest

from pxed.client.bootdisk import build_bootdisk
from pxed.errors import HostError
from tests.conftest import requires

VMLINUZ = bytes(range(256)) * 4000
INITRD = b"initrd" * 50_000
CMDLINE = "console=ttyS0 pxed.shelf=16"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("sfdisk", "mkfs.fat", "mcopy", "syslinux", "objcopy", root=False)
    folder = tmp_path_factory.mktemp("disk")
    (folder / "vmlinuz").write_bytes(VMLINUZ)
    (folder / "initrd").write_bytes(INITRD)
    build_bootdisk(
        folder / "boot.img",
        vmlinuz=folder / "vmlinuz",
        initrd=folder / "initrd",
        cmdline=CMDLINE,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["boot.img", "initrd", "vmlinuz"]
    return folder / "boot.img"


def _inside(disk: Path, name: str) -> bytes:
    argv = ["mtype", "-i", f"{disk}@@{1 << 20}", f"::/{name}"]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_the_partition_table_is_valid_and_marked_for_both_firmwares(disk: Path) -> None:
    verified = subprocess.run(["sfdisk", "-V", str(disk)], capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    shown = subprocess.run(["sfdisk", "-J", str(disk)], check=True, capture_output=True).stdout
    table = json.loads(shown)["partitiontable"]
    (partition,) = table["partitions"]
    assert table["label"] == "gpt"
    assert partition["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert partition["attrs"] == "LegacyBIOSBootable"
    assert disk.stat().st_size % 4096 == 0


def test_the_first_sector_starts_syslinux(disk: Path) -> None:
    sector = disk.read_bytes()[:512]
    assert sector[:440] == Path("/usr/lib/SYSLINUX/gptmbr.bin").read_bytes()[:440].ljust(440, b"\0")
    assert sector[510:] == b"\x55\xaa"
    assert sector[450] == 0xEE
    assert disk.read_bytes()[(1 << 20) + 3 : (1 << 20) + 11] == b"SYSLINUX"
    assert _inside(disk, "ldlinux.sys")
    assert _inside(disk, "ldlinux.c32")


def test_the_file_system_is_fat16_and_sound(disk: Path, tmp_path: Path) -> None:
    requires("fsck.fat", root=False)
    volume = tmp_path / "fat"
    volume.write_bytes(disk.read_bytes()[1 << 20 : -(1 << 20)])
    assert volume.read_bytes()[54:62] == b"FAT16   "
    checked = subprocess.run(["fsck.fat", "-n", str(volume)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_bios_finds_kernel_initrd_and_command_line(disk: Path) -> None:
    assert _inside(disk, "vmlinuz") == VMLINUZ
    assert _inside(disk, "initrd") == INITRD
    config = _inside(disk, "syslinux.cfg").decode()
    assert f"APPEND {CMDLINE}\n" in config
    assert "PROMPT 0" in config


def test_uefi_finds_one_program_with_all_three(disk: Path) -> None:
    program = _inside(disk, "EFI/BOOT/BOOTX64.EFI")
    sections = _sections(program)
    assert sections[".linux"].startswith(VMLINUZ)
    assert sections[".initrd"].startswith(INITRD)
    assert sections[".cmdline"].rstrip(b"\0") == CMDLINE.encode()


def test_sections_of_the_program_do_not_overlap(disk: Path) -> None:
    program = _inside(disk, "EFI/BOOT/BOOTX64.EFI")
    ranges = sorted((where, where + size) for _, size, where, _, _ in _headers(program))
    assert all(a_end <= b_start for (_, a_end), (b_start, _) in itertools.pairwise(ranges))


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"apt install .*binutils"):
        build_bootdisk(
            tmp_path / "boot.img", vmlinuz=tmp_path / "x", initrd=tmp_path / "x", cmdline=""
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def _headers(program: bytes) -> list[tuple[str, int, int, int, int]]:
    """(name, virtual size, address, size in file, place in file) of each section."""
    (start,) = struct.unpack_from("<I", program, 0x3C)
    count, optional = struct.unpack_from("<H12xH", program, start + 6)
    at = start + 24 + optional
    found = []
    for index in range(count):
        name, *numbers = struct.unpack_from("<8sIIII", program, at + 40 * index)
        found.append((name.rstrip(b"\0").decode(), *numbers))
    return found


def _sections(program: bytes) -> dict[str, bytes]:
    return {
        name: program[place : place + raw][: size or raw]
        for name, size, _, raw, place in _headers(program)
    }
