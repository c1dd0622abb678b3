"""The log of a disk's writes as QEMU's blklogwrites keeps it (and dm-log-writes); its replay."""

import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pxed.disk import copy_data

# <linux/drivers/md/dm-log-writes.c>: a superblock, then an entry before the data of each write.
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the guest: ``data`` at byte ``offset``; a flush may carry none."""

    offset: int
    length: int
    flags: int
    data: bytes


def count(log: Path) -> int:
    """How many entries are complete now."""
    with log.open("rb") as file:
        raw = file.read(_SUPER.size)
    if len(raw) < _SUPER.size:
        return 0
    magic, _version, entries, _size = _SUPER.unpack(raw)
    return entries if magic == _MAGIC else 0


def entries(log: Path, limit: int) -> Iterator[Entry]:
    """The first ``limit`` entries, in the order in which the disk got them."""
    with log.open("rb") as file:
        magic, version, _count, size = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version) == (_MAGIC, 1)
        at = size
        for _ in range(limit):
            file.seek(at)
            sector, sectors, flags, _length = _ENTRY.unpack(file.read(_ENTRY.size))
            at += size
            data = b""
            if sectors and not flags & DISCARD:
                file.seek(at)
                data = file.read(sectors * size)
                at += sectors * size
            yield Entry(sector * size, sectors * size, flags, data)


class Disk:
    """What a disk with a volatile cache holds after a power cut, one cut after the other.

    What was flushed is there. Of what came later each write is there or not, as ``chance`` has it.
    """

    def __init__(self, path: Path, size: int, log: Path, limit: int) -> None:
        self._path, self._log = path, entries(log, limit)
        with path.open("wb") as file:
            file.truncate(size)
        self._pending: list[Entry] = []
        self.position = 0

    def advance(self, cut: int) -> None:
        """Take the entries before number ``cut``."""
        with self._path.open("r+b") as file:
            while self.position < cut:
                entry = next(self._log)
                self.position += 1
                if entry.flags & FLUSH:
                    # It covers what was completed before; nothing is in flight that came earlier.
                    for each in self._pending:
                        _apply(file, each)
                    self._pending.clear()
                if entry.flags & FUA:
                    _apply(file, entry)
                elif entry.length:
                    self._pending.append(entry)

    def cut(self, copy: Path, chance: random.Random) -> None:
        """Write to ``copy`` what the disk holds if the power goes now."""
        _copy_sparse(self._path, copy)
        with copy.open("r+b") as file:
            share = chance.choice((0.0, 0.5, 1.0))
            for entry in self._pending:
                if chance.random() < share:
                    _apply(file, entry)


def _apply(file: BinaryIO, entry: Entry) -> None:
    file.seek(entry.offset)
    file.write(bytes(entry.length) if entry.flags & DISCARD else entry.data)


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        copy_data(reader.fileno(), writer.fileno(), size)


def logged_disk(disk: Path, log: Path) -> tuple[str, ...]:
    """QEMU's options for one more disk whose every write and flush goes to ``log`` too."""
    return (
        "-blockdev", f"driver=file,node-name=data,filename={disk},cache.no-flush=on",
        "-blockdev", f"driver=file,node-name=log,filename={log},cache.no-flush=on",
        "-blockdev", "driver=blklogwrites,node-name=logged,file=data,log=log",
        "-device", "virtio-blk-pci,drive=logged,addr=0x10",  # after all others
    )  # fmt: skip
