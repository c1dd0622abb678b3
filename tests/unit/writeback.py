"""A small writeback export and writes to it, for tests of what becomes of them in its file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from tests.aoe_frames import SERVER, WRITE, Reply, ata

SECTORS = 512  # four chunks of 64 KiB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"o" * SECTORS * 512)
    return path


@pytest.fixture
def export(disk: Path) -> Iterator[Export]:
    with Export(disk, writable=True, durability="writeback") as export:
        yield export


def serving(export: Export) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): export})
    return target


def put(target: Target, lba: int, data: bytes) -> int:
    (raw,) = target.handle(ata(WRITE, lba, len(data) // 512, data=data), SERVER)
    return Reply(raw).status
