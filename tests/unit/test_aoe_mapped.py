"""Writes through the mapping: same bytes as before, and no file that shrinks or fills kills us."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.mapped import hot_chunks
from tests.aoe_frames import READ, SERVER, Reply, ata
from tests.unit.writeback import SECTORS, disk, export, put, serving

__all__ = ["disk", "export"]  # the fixtures
pytestmark = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (5, 14),
    reason="needs Linux 5.14 (MADV_POPULATE_WRITE): every write is a pwrite here",
)

HOT = 8  # of a chunk's 16 pages


def heat(target: Target, lba: int = 0) -> None:
    for page in range(HOT):
        assert put(target, lba + 8 * page, bytes([page]) * 512) == 0x40


def test_what_is_written_often_goes_through_the_mapping(export: Export, disk: Path) -> None:
    target = serving(export)
    heat(target)
    assert hot_chunks(export) == 1
    for lba in range(0, 128, 2):
        assert put(target, lba, bytes([lba]) * 1024) == 0x40
    expected = b"".join(bytes([lba]) * 1024 for lba in range(0, 128, 2))
    assert disk.read_bytes() == expected + b"o" * (SECTORS * 512 - 65536)
    (raw,) = target.handle(ata(READ, 6, 2), SERVER)
    assert Reply(raw).data == bytes([6]) * 1024


def test_a_write_across_two_chunks(export: Export, disk: Path) -> None:
    target = serving(export)
    heat(target, 0)
    heat(target, 128)
    assert hot_chunks(export) == 2
    assert put(target, 127, b"a" * 512 + b"b" * 512) == 0x40
    assert disk.read_bytes()[127 * 512 : 129 * 512] == b"a" * 512 + b"b" * 512


def test_one_page_written_again_and_again_is_not_hot(export: Export, disk: Path) -> None:
    """A log, say: the other fifteen would go to the disk with it each time."""
    target = serving(export)
    for number in range(50):
        assert put(target, number % (8 * (HOT - 1)), bytes([number]) * 512) == 0x40
    assert hot_chunks(export) == 0
    assert put(target, 8 * (HOT - 1), b"x" * 512) == 0x40
    assert hot_chunks(export) == 1


def test_a_chunk_with_a_hole_is_not_hot(tmp_path: Path) -> None:
    """Its blocks would be taken from the disk although nobody has written there."""
    disk = tmp_path / "sparse"
    with disk.open("wb") as file:
        file.truncate(SECTORS * 512)
    with Export(disk, writable=True, durability="writeback") as export:
        target = serving(export)
        disk.read_bytes()  # the holes are in memory
        heat(target)
        assert hot_chunks(export) == 0
        export.sync()
        assert disk.stat().st_blocks * 512 <= (HOT + 1) * 4096
        for page in (*range(16), *range(16)):
            assert put(target, 8 * page, b"x" * 512) == 0x40
        assert hot_chunks(export) == 1


def test_a_sync_cools(export: Export) -> None:
    target = serving(export)
    heat(target)
    export.sync()
    assert hot_chunks(export) == 0


def test_durable_exports_have_no_hot_chunks(disk: Path) -> None:
    with Export(disk, writable=True) as export:
        heat(serving(export))
        assert hot_chunks(export) == 0


def test_a_part_of_a_file_that_begins_within_a_page(disk: Path) -> None:
    with Export(
        disk, writable=True, durability="writeback", offset=3 * 512, length=300 * 512
    ) as export:
        target = serving(export)
        heat(target)
        assert hot_chunks(export) == 1
        assert put(target, 9, b"x" * 512) == 0x40
    assert disk.read_bytes()[12 * 512 : 13 * 512] == b"x" * 512


def test_a_file_that_shrinks_under_a_hot_chunk_is_no_signal(export: Export, disk: Path) -> None:
    target = serving(export)
    heat(target, 256)
    assert hot_chunks(export) == 1
    os.truncate(disk, 4096)
    # As without a mapping: the write makes the file longer again.
    assert put(target, 256, b"n" * 1024) == 0x40
    assert disk.read_bytes()[256 * 512 :] == b"n" * 1024
    assert hot_chunks(export) == 0


def test_a_file_that_shrank_has_no_hot_chunks(export: Export, disk: Path) -> None:
    os.truncate(disk, SECTORS * 512 - 512)
    heat(serving(export))
    assert hot_chunks(export) == 0


def test_a_signal_that_somebody_took_over_means_pwrite(disk: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from aoe_fast import Export
from aoe_fast.mapped import hot_chunks
from tests.unit.test_aoe_mapped import heat
from tests.unit.writeback import SECTORS, put, serving
signal.signal(signal.SIGBUS, signal.SIG_DFL)
disk = Path(sys.argv[1])
with Export(disk, writable=True, durability="writeback") as export:
    target = serving(export)
    heat(target)
    assert hot_chunks(export) == 1
    os.truncate(disk, 0)
    assert put(target, 0, b"n" * 512) == 0x40
assert disk.read_bytes() == b"n" * 512
"""
    done = subprocess.run([sys.executable, "-c", code, str(disk)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_any_other_sigbus_still_kills(disk: Path) -> None:
    code = """
import mmap, os, resource, sys
from aoe_fast import mapped
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
    os.truncate(sys.argv[1], 0)
    memory[0] = 1
"""
    done = subprocess.run([sys.executable, "-c", code, str(disk)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGBUS


def test_a_full_disk_under_a_hot_chunk_is_an_ata_error() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    code = """
import ctypes, os
from pathlib import Path
from aoe_fast import Export
from aoe_fast.mapped import hot_chunks
from tests.unit.test_aoe_mapped import heat
from tests.unit.writeback import SECTORS, put, serving
disk = Path("/mnt/disk.img")
disk.write_bytes(b"o" * SECTORS * 512)
with Export(disk, writable=True, durability="writeback") as export:
    target = serving(export)
    heat(target, 128)
    # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: the chunk's pages go, and others take their place.
    libc = ctypes.CDLL(None, use_errno=True)
    with disk.open("r+b") as file:
        assert libc.fallocate64(file.fileno(), 3, ctypes.c_int64(65536), ctypes.c_int64(65536)) == 0
    with open("/mnt/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    assert hot_chunks(export) == 1
    assert put(target, 128, b"n" * 512) == 0x41
    assert put(target, 0, b"n" * 512) == 0x40
"""
    shell = 'mount -t tmpfs -o size=1m none /mnt && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, sys.executable, code], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
