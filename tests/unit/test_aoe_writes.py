"""Writes reach the file as they are, whatever becomes of it meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoe_fast import Export
from tests.unit.writeback import SECTORS, disk, export, put, serving

__all__ = ["disk", "export"]  # the fixtures


def test_a_write_is_where_it_belongs_and_nowhere_else(export: Export, disk: Path) -> None:
    target = serving(export)
    for _ in range(50):  # again and again: the last one counts
        assert put(target, 127, b"a" * 512 + b"b" * 512) == 0x40
    whole = disk.read_bytes()
    assert whole[127 * 512 : 129 * 512] == b"a" * 512 + b"b" * 512
    assert whole.count(b"o") == (SECTORS - 2) * 512


def test_a_part_of_a_file_that_begins_within_a_page(disk: Path) -> None:
    with Export(
        disk, writable=True, durability="writeback", offset=3 * 512, length=300 * 512
    ) as export:
        assert put(serving(export), 9, b"x" * 512) == 0x40
    assert disk.read_bytes()[12 * 512 : 13 * 512] == b"x" * 512


def test_a_file_that_shrank_becomes_longer_again(export: Export, disk: Path) -> None:
    target = serving(export)
    os.truncate(disk, 4096)
    assert put(target, 256, b"n" * 1024) == 0x40
    assert disk.read_bytes()[256 * 512 :] == b"n" * 1024


def test_a_full_disk_is_an_error_for_that_write_alone() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small file system")
    code = """
import os
from pathlib import Path
from aoe_fast import Export
from tests.unit.writeback import SECTORS, put, serving
disk = Path("/mnt/disk.img")
disk.write_bytes(b"o" * SECTORS * 512)
with Export(disk, writable=True, durability="writeback") as export:
    target = serving(export)
    assert put(target, 128, b"n" * 512) == 0x40
    # A hole where its blocks were, and no room for others.
    os.truncate(disk, 65536)
    os.truncate(disk, SECTORS * 512)
    with open("/mnt/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    assert put(target, 128, b"n" * 512) == 0x41
    assert put(target, 0, b"n" * 512) == 0x40
"""
    shell = 'mount -t tmpfs -o size=1m none /mnt && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, sys.executable, code], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
