"""Disk images whose every sector says which export, LBA and version it is; as in generator.c."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SECTOR = 512
_STEP = np.uint64(0x9E3779B97F4A7C15)
_EXPORT = np.uint64(0xD1B54A32D192ED03)
_LBA = np.uint64(0xBF58476D1CE4E5B9)
_VERSION = np.uint64(0x94D049BB133111EB)
_CHUNK = 65536


def first_words(export: int, start: int, count: int, version: int = 0) -> NDArray[np.uint64]:
    """The first 8 bytes of ``count`` sectors from LBA ``start`` on."""
    lba = np.arange(start, start + count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        base = np.uint64(export + 1) * _EXPORT + np.uint64(version) * _VERSION
        return np.asarray(lba * _LBA + base, dtype=np.uint64)


def sectors(export: int, start: int, count: int, version: int = 0) -> NDArray[np.uint64]:
    """``count`` sectors as an array of (count, 64) words."""
    with np.errstate(over="ignore"):
        return first_words(export, start, count, version)[:, None] + (
            np.arange(SECTOR // 8, dtype=np.uint64) * _STEP
        )


def make(path: Path, size: int, export: int = 0, piece: int = _CHUNK * SECTOR) -> None:
    """A file of ``size`` bytes, all of it version 0, on the disk when this returns.

    piece: bytes for each write. The page cache keeps a big one as one folio, and ext4 walks all the
    blocks of a folio for each later write into it: 45 us instead of 2 on Linux 6.18.
    """
    with path.open("wb", buffering=0) as out:
        for start in range(0, size // SECTOR, _CHUNK):
            data = sectors(export, start, min(_CHUNK, size // SECTOR - start)).tobytes()
            for at in range(0, len(data), piece):
                out.write(data[at : at + piece])
        os.fsync(out.fileno())


def count_written(path: Path, version: int, export: int = 0) -> int:
    """How many sectors are of ``version``; ValueError if one is of none up to it, or torn."""
    words = np.memmap(path, dtype=np.uint64, mode="r").reshape(-1, SECTOR // 8)
    newest = 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        first = part[:, 0].copy()
        known = np.zeros(len(part), dtype=bool)
        for each in range(version + 1):
            known |= first == first_words(export, start, len(part), each)
        newest += int((first == first_words(export, start, len(part), version)).sum())
        with np.errstate(over="ignore"):
            steps = np.arange(SECTOR // 8, dtype=np.uint64) * _STEP
            whole = (part == first[:, None] + steps).all(axis=1)
        if not (known & whole).all():
            bad = start + int(np.argmin(known & whole))
            raise ValueError(f"{path}: sector {bad} holds neither old nor new data")
    return newest


def forget(path: Path) -> None:
    """Drop the file's pages from the page cache; nobody may have it mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
