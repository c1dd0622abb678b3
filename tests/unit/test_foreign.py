"""Initramfses and media of others: known by what is in them, and nothing on them leads out."""

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pxed.client.archive import Cpio
from pxed.client.foreign import look
from pxed.client.medium import Live, Medium, is_live, live_on, release_of
from pxed.errors import HostError, UsageError
from tests.conftest import requires


def archive(*names: str) -> bytes:
    made = Cpio()
    for name in names:
        made.file(name, b"x" * 5)
    return bytes(made)


MICROCODE = archive("kernel/x86/microcode/GenuineIntel.bin")
KIWI = archive("usr/sbin/kiwi-live-root", "usr/lib/net-lib.sh", "usr/lib/modules/6/block/aoe.ko.xz")
LIVE = archive("bin/live-boot", "usr/lib/modules/6/net/aoe.kox")


@pytest.mark.parametrize(
    "packed",
    [
        KIWI,
        gzip.compress(KIWI),
        lzma.compress(KIWI),
        lzma.compress(KIWI, check=lzma.CHECK_CRC32),
        MICROCODE + gzip.compress(KIWI),
        MICROCODE + bytes(512) + KIWI,
    ],
)
def test_a_kiwi_initramfs_is_known_however_it_is_packed(packed: bytes) -> None:
    found = look(packed, "it")
    assert found.kind == "kiwi"
    assert found.loads_aoe


@pytest.mark.parametrize("program", ["zstd", "lz4"])
def test_packed_by_a_program(program: str) -> None:
    requires(program, root=False)
    packed = subprocess.run([program, "-q", "-c"], input=KIWI, capture_output=True, check=True)
    assert look(MICROCODE + packed.stdout, "it").kind == "kiwi"


def test_what_is_not_able_or_not_known() -> None:
    found = look(LIVE, "it")
    assert found.kind == "live-boot"
    assert not found.has_aoe
    assert not found.loads_aoe
    assert look(archive("init"), "it").kind == ""
    assert look(archive("sbin/dmsquash-live-root"), "it").kind == "dracut"


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 600, bytes(600), b"\xfd7zXZ\0" + b"x" * 60, b"\x1f\x8b" + b"x" * 60,
     b"070701" + b"z" * 120],
)  # fmt: skip
def test_what_is_no_initramfs(data: bytes) -> None:
    with pytest.raises(UsageError, match="initramfs"):
        look(data, "it")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("live/filesystem.squashfs", "live/vmlinuz-6.1", "live/initrd.img-6.1",
                 "live/vmlinuz-7", "install/vmlinuz", "install/initrd.gz"):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    return tree


@pytest.fixture(params=["directory", "iso"])
def medium(request: pytest.FixtureRequest, tree: Path) -> Medium:
    if request.param == "directory":
        return Medium(tree)
    requires("xorriso", root=False)
    target = tree.parent / "medium.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", str(target), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    return Medium(target)


def test_a_live_system_is_found_on_its_medium(medium: Medium, tmp_path: Path) -> None:
    live = live_on(medium)
    assert live == Live("live/filesystem.squashfs", "live/vmlinuz-6.1", "live/initrd.img-6.1")
    medium.fetch(live.initrd, tmp_path / "out")
    assert (tmp_path / "out").read_text() == live.initrd


def test_a_medium_without_a_live_system(tree: Path) -> None:
    shutil.rmtree(tree / "live")
    assert not is_live(tree)
    with pytest.raises(UsageError, match="no live system on it"):
        live_on(Medium(tree))


def test_a_medium_without_a_kernel(tree: Path) -> None:
    (tree / "live/initrd.img-6.1").unlink()
    assert is_live(tree)
    with pytest.raises(UsageError, match="no kernel with an initramfs"):
        live_on(Medium(tree))


def test_a_link_on_a_medium_leads_nowhere(medium: Medium, tree: Path, tmp_path: Path) -> None:
    if medium.is_iso:
        (tree / "live/initrd.img-6.1").unlink()
        (tree / "live/initrd.img-6.1").symlink_to("/etc/passwd")
        target = tree.parent / "evil.iso"
        argv = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", str(target), str(tree)]
        subprocess.run(argv, check=True, capture_output=True)
        medium = Medium(target)
        assert "live/initrd.img-6.1" not in medium.names
    else:
        (tree / "live/initrd.img-6.1").unlink()
        (tree / "live/initrd.img-6.1").symlink_to("/etc/passwd")
    with pytest.raises(UsageError):
        medium.fetch("live/initrd.img-6.1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_only_begins_like_an_iso(tmp_path: Path) -> None:
    requires("xorriso", root=False)
    path = tmp_path / "x.iso"
    path.write_bytes(bytes(0x8001) + b"CD001" + bytes(100))
    with pytest.raises((HostError, UsageError)):
        live_on(Medium(path))


def test_the_release_of_a_kernel(tmp_path: Path) -> None:
    data = bytearray(4096)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0x600)
    data[0x800:0x810] = b"6.1.0-1 (me) #1\0"
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    assert release_of(path) == "6.1.0-1"
    path.write_bytes(b"MZ" + bytes(2000))
    with pytest.raises(UsageError, match="no bzImage"):
        release_of(path)
