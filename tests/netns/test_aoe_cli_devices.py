"""Block devices as exports: parts of them, mounted ones, and one whose disk is full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast.initiator import AtaError, Initiator
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import Cable, requires
from tests.netns.test_aoe_cli_hot import AOE_FAST, Start, refused, start

__all__ = ["start"]  # the fixture
pytestmark = pytest.mark.netns

SIZE = 4 << 20


@contextlib.contextmanager
def loop(image: Path, *options: str) -> Iterator[Path]:
    done = subprocess.run(
        ["losetup", "--find", "--show", *options, str(image)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    try:
        yield Path(done.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@contextlib.contextmanager
def mounted(what: Path, where: Path, options: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, str(what), str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device with an ext4 file system."""
    requires("losetup", "mkfs.ext4", "mount")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with loop(image) as path:
        yield path


def test_a_device_and_a_part_of_it(start: Start, cable: Cable, device: Path) -> None:
    data = device.read_bytes()
    start(
        cable.srv,
        "--export", f"16.0={device}",
        "--export", f"16.1={device},offset=1M,length=64K",
    )  # fmt: skip
    with cable.cli.inside(), Initiator("eth0") as initiator:
        assert initiator.read(16, 0, 0, SIZE // 512) == data
        assert initiator.identify(16, 1).sectors == 128
        assert initiator.read(16, 1, 0, 128) == data[1 << 20 : (1 << 20) + 65536]
        for slot in (0, 1):
            with pytest.raises(AtaError):
                initiator.write(16, slot, 0, bytes(512))
        with pytest.raises(AtaError):
            initiator.read(16, 1, 127, 2)
    assert device.read_bytes() == data


def test_a_read_only_device_is_not_served_for_writing(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    requires("losetup")
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(8192))
    with loop(image, "--read-only") as device:
        for options in ("rw", "rw,writeback"):
            said = refused(cable.srv, "--export", f"16.0={device},{options}")
            assert "is a read-only device: export it read-only" in said
        start(cable.srv, "--export", f"16.0={device}")
        with cable.cli.inside(), Initiator("eth0") as initiator:
            assert initiator.read(16, 0, 0, 16) == image.read_bytes()


def test_a_device_that_is_mounted_read_write(
    start: Start, cable: Cable, device: Path, tmp_path: Path
) -> None:
    with mounted(device, tmp_path / "mnt", "rw"):
        for options in ("", ",rw", ",offset=64K"):
            said = refused(cable.srv, "--export", f"16.0={device}{options}")
            assert f"{device}: is mounted read-write on {tmp_path / 'mnt'}" in said
            assert "force" in said
        start(cable.srv, "--export", f"16.0={device},force")
        with cable.cli.inside(), Initiator("eth0") as initiator:
            assert initiator.read(16, 0, 2, 2)[56:58] == b"\x53\xef"  # the superblock's magic


def test_a_device_that_is_mounted_read_only(
    start: Start, cable: Cable, device: Path, tmp_path: Path
) -> None:
    """Readers may share it; a writer would pull the data from under the mount."""
    with mounted(device, tmp_path / "mnt", "ro"):
        said = refused(cable.srv, "--export", f"16.0={device},rw")
        assert f"is mounted on {tmp_path / 'mnt'}" in said
        start(cable.srv, "--export", f"16.0={device}")


def test_a_partition_that_is_mounted_protects_its_disk(cable: Cable, tmp_path: Path) -> None:
    requires("losetup", "sfdisk", "mkfs.ext4")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    subprocess.run(["sfdisk", "-q", str(image)], input=b"2048,\n", check=True)
    with loop(image, "--partscan") as disk:
        part = Path(f"{disk}p1")
        if not part.exists():
            pytest.skip("no partitions of loop devices here")
        subprocess.run(["mkfs.ext4", "-q", "-F", str(part)], check=True)
        with mounted(part, tmp_path / "mnt", "rw"):
            said = refused(cable.srv, "--export", f"16.0={disk}")
            assert "is mounted read-write" in said


def failure(initiator: Initiator, lba: int, data: bytes) -> tuple[int, int] | None:
    """(status, error) of a write that fails."""
    try:
        initiator.write(16, 0, lba, data)
    except AtaError as error:
        return error.status, error.error
    return None


def test_a_sync_that_fails_for_want_of_room(start: Start, cable: Cable, tmp_path: Path) -> None:
    """A sparse file on a full file system below a loop device: a write works, its sync does not."""
    requires("losetup", "mount")
    room = tmp_path / "room"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(room)], check=True)
    try:
        image = room / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        with loop(image) as path:
            server = start(cable.srv, "--export", f"16.0={path},rw")
            with cable.cli.inside(), Initiator("eth0") as initiator:
                initiator.write(16, 0, 0, b"a" * 4096)
                failures = [
                    failure(initiator, piece * 1024, os.urandom(1 << 19)) for piece in range(1, 8)
                ]
                assert failures[-5:] == [(0x41, 0x40)] * 5  # media error
                assert initiator.read(16, 0, 0, 8) == b"a" * 4096
                # What came with the failed ones fails as well; then all is well again.
                assert eventually(lambda: failure(initiator, 0, b"b" * 4096) is None)
                assert initiator.read(16, 0, 0, 8) == b"b" * 4096
            server.terminate()
            server.communicate(timeout=PATIENCE)
    finally:
        subprocess.run(["umount", "--lazy", str(room)], check=True)


def test_misuse(cable: Cable, tmp_path: Path) -> None:
    said = refused(cable.srv, "--export", "16.0=/dev/null")
    assert "not a file or a block device" in said
    assert AOE_FAST
