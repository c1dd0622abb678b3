"""Export: what may be exported, its range, its life."""

import errno
import gc
import os
import tempfile
from pathlib import Path
from zlib import crc32

import pytest

from aoe_fast import AoeError, Export, Target
from aoe_fast.store import live_backings, mounted_read_write
from tests.aoe_frames import READ, SERVER, Reply, ata


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 32)  # 16 sectors
    return path


def test_an_odd_sized_image_is_refused_but_not_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1500)
    with pytest.raises(AoeError, match=r"476 more than whole sectors.*truncate.*length=1024"):
        Export(path)
    with Export(path, length=1024) as export:
        assert export.sectors == 2


def test_offset_and_length_choose_a_part(disk: Path) -> None:
    data = disk.read_bytes()
    with Export(disk, offset=512 * 9, length=1024) as export:
        target = Target()
        target.set_view(None, {(16, 3): export})
        (raw,) = target.handle(ata(READ, 1, 1), SERVER)
        assert export.sectors == 2
        assert Reply(raw).data == data[512 * 10 : 512 * 11]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offset": 100}, "multiple of 512"),
        ({"offset": 8192}, "below the size"),
        ({"length": 8193}, "not within"),
        ({"offset": 512, "length": 8192}, "not within"),
        ({"length": 100}, "less than one sector"),
        ({"durability": "never"}, "durable or writeback"),
        ({"serial": "x" * 21}, "shorten"),
    ],
)
def test_bad_options_are_one_line_errors(disk: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(AoeError, match=words) as caught:
        Export(disk, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_name_is_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/gr\xfcn.img"
    with open(path, "wb") as file:
        file.write(bytes(4096))
    serial = f"AF{crc32(os.path.basename(path)):08X}"
    for name in (path, os.fsdecode(path), Path(os.fsdecode(path))):
        with Export(name) as export:
            assert (os.fsencode(export.path), export.serial) == (path, serial)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AoeError, match="no such file"):
        Export(tmp_path / "absent")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(AoeError, match="directory"):
        Export(tmp_path)
    with pytest.raises(AoeError, match="directory"):
        Export(tmp_path, writable=True)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(AoeError, match="empty"):
        Export(tmp_path / "empty")


def test_a_file_larger_than_all_addresses() -> None:
    """2^47 bytes are a process's on x86, 2^48 on others; tmpfs has files of any size."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "large")
        path.touch()
        try:
            os.truncate(path, 1 << 57)
        except OSError as error:
            pytest.skip(f"no file of 128 PiB here: {error.strerror}")
        with pytest.raises(AoeError, match=r"addresses for: export a part \(length=\)"):
            Export(path)
        with Export(path, offset=(1 << 57) - 4096, length=4096) as part:
            assert part.sectors == 8


def test_a_disk_that_fails_while_it_is_hashed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with Export(disk) as export:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(AoeError, match="cannot be read"):
            export.share()


def test_character_device() -> None:
    with pytest.raises(AoeError, match="not a file or a block device"):
        Export("/dev/null")


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AoeError, match="not a file"):
        Export(tmp_path / "pipe")


def test_read_only_file_is_not_exported_writable(disk: Path) -> None:
    disk.chmod(0o444)
    with pytest.raises(AoeError, match=r"read-only|cannot be opened"):
        Export(disk, writable=True)
    Export(disk).close()


def test_closing_twice_is_fine(disk: Path) -> None:
    export = Export(disk, writable=True)
    export.close()
    export.close()
    assert export.closed


def test_closed_export_cannot_be_bound_or_synced(disk: Path) -> None:
    export = Export(disk)
    export.close()
    with pytest.raises(AoeError, match="closed"):
        Target().set_view(None, {(16, 3): export})
    with pytest.raises(AoeError, match="closed"):
        export.sync()


def test_closed_export_serves_until_its_view_is_dropped(disk: Path) -> None:
    gc.collect()  # what the tests before this one let go of
    before = live_backings()
    target = Target()
    export = Export(disk)
    target.set_view(None, {(16, 3): export})
    export.close()
    (raw,) = target.handle(ata(READ, 0, 1), SERVER)
    assert Reply(raw).status == 0x40
    assert live_backings() == before + 1
    target.drop_view(None)
    assert live_backings() == before


def test_a_refused_export_leaks_nothing(disk: Path) -> None:
    gc.collect()
    backings, descriptors = live_backings(), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(AoeError):
            Export(disk, offset=1)
    assert live_backings() == backings
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_view_keeps_a_forgotten_export(disk: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): Export(disk)})
    assert len(target.handle(ata(READ, 0, 1), SERVER)) == 1


MOUNTS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
    "23 1 8:17 / /mnt/backup ro,relatime - ext4 /dev/sdb1 ro\n"
)


def test_a_device_mounted_read_write_is_found() -> None:
    assert mounted_read_write(os.makedev(8, 1), MOUNTS) == "/"


def test_a_device_mounted_read_only_is_no_danger() -> None:
    assert mounted_read_write(os.makedev(8, 17), MOUNTS) is None


def test_a_device_not_mounted() -> None:
    assert mounted_read_write(os.makedev(8, 33), MOUNTS) is None
