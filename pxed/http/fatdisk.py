"""A disk with one FAT file system that is put together while it is sent. Pure but for file sizes.

HTTP boot of UEFI takes a disk (a URL that ends in ``.img``), keeps it in memory and starts the
loader that is on it. All of a disk but its files' own bytes is a few sectors at its beginning, so
that a disk for each machine costs no room and no time. Layout: Microsoft's FAT specification 1.03,
FAT16, without partitions; names of 8.3 characters only.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pxed.errors import UsageError

SECTOR = 512
_ROOT_ENTRIES = 512  # 16 KiB
_LEAST, _MOST = 4085, 65_524  # clusters of FAT16
_SIGN = b"\x55\xaa"
_DATE = (1 << 5) | 1  # 1980-01-01: the same bytes each time
_DIRECTORY, _FILE = 0x10, 0x20
_END = 0xFFFF


@dataclass(frozen=True, slots=True)
class Piece:
    """``size`` bytes of the disk: of the file ``path``, else ``content``; then zeros up to it."""

    size: int
    content: bytes = b""
    path: Path | None = None


@dataclass(slots=True)
class _Folder:
    entries: dict[str, "_Folder | _Leaf"] = field(default_factory=dict)


@dataclass(slots=True)
class _Leaf:
    content: bytes | Path
    size: int


class FatDisk:
    """``files``: path on the disk, such as ``EFI/BOOT/BOOTX64.EFI``, to its bytes or a file.

    ``size`` in bytes. A file that changes its size after this moment does not fit any more, which
    is the sender's to notice. UsageError for a file that is not there, and for 2 GiB in all.
    """

    def __init__(self, files: Mapping[str, bytes | Path]) -> None:
        self._root = _Folder()
        for name, content in files.items():
            self._add(name, content)
        total = sum(leaf.size for leaf in _leaves(self._root))
        per = 1
        while total // (per * SECTOR) + 64 > _MOST:
            per *= 2
        if per > 64:
            raise UsageError(f"{total} bytes do not fit on one FAT disk")
        self._per = per
        self._cluster = per * SECTOR
        self._fat: list[int] = [0xFFF8, _END]
        self._pieces: list[Piece] = []  # of the data area, in order
        top = b"".join(self._place(name, each, 0) for name, each in self._root.entries.items())
        clusters = max(len(self._fat) - 2, _LEAST + 16)
        fat_sectors = -(-(clusters + 2) * 2 // SECTOR)
        sectors = 1 + fat_sectors + _ROOT_ENTRIES * 32 // SECTOR + clusters * per
        self.size = sectors * SECTOR
        fat = struct.pack(f"<{len(self._fat)}H", *self._fat)
        head = (
            self._boot_sector(sectors, fat_sectors)
            + fat.ljust(fat_sectors * SECTOR, b"\0")
            + top.ljust(_ROOT_ENTRIES * 32, b"\0")
        )
        spare = clusters - (len(self._fat) - 2)
        self._pieces.insert(0, Piece(len(head), head))
        if spare:
            self._pieces.append(Piece(spare * self._cluster))

    def pieces(self) -> Iterator[Piece]:
        """The disk from its first byte to its last."""
        yield from self._pieces

    def _add(self, name: str, content: bytes | Path) -> None:
        *folders, last = name.upper().split("/")
        here = self._root
        for folder in folders:
            below = here.entries.setdefault(folder, _Folder())
            assert isinstance(below, _Folder)
            here = below
        try:
            size = content.stat().st_size if isinstance(content, Path) else len(content)
        except OSError as error:
            raise UsageError(f"{content!s}: {error.strerror}") from None
        here.entries[last] = _Leaf(content, size)

    def _place(self, name: str, what: "_Folder | _Leaf", parent: int) -> bytes:
        """Put it into the data area; its entry in the directory that it is in."""
        if isinstance(what, _Leaf):
            first = self._take(what.size)
            whole = -(-what.size // self._cluster) * self._cluster
            if isinstance(what.content, Path):
                self._pieces.append(Piece(what.size, path=what.content))
                self._pieces.append(Piece(whole - what.size))
            else:
                self._pieces.append(Piece(whole, what.content))
            return _entry(name, _FILE, first, what.size)
        size = (len(what.entries) + 2) * 32
        first = self._take(size)
        at = len(self._pieces)
        own = _entry(".", _DIRECTORY, first, 0) + _entry("..", _DIRECTORY, parent, 0)
        own += b"".join(self._place(each, below, first) for each, below in what.entries.items())
        self._pieces.insert(at, Piece(-(-size // self._cluster) * self._cluster, own))
        return _entry(name, _DIRECTORY, first, 0)

    def _take(self, size: int) -> int:
        """The first of the clusters for so many bytes, one after the other; 0 for none."""
        count = -(-size // self._cluster)
        if not count:
            return 0
        first = len(self._fat)
        self._fat += range(first + 1, first + count)
        self._fat.append(_END)
        return first

    def _boot_sector(self, sectors: int, fat_sectors: int) -> bytes:
        small = sectors if sectors < 1 << 16 else 0
        fields = struct.pack(
            "<3s8sHBHBHHBHHHIIBBBI11s8s",
            b"\xeb\x3c\x90", b"MSWIN4.1", SECTOR, self._per, 1, 1, _ROOT_ENTRIES, small, 0xF8,
            fat_sectors, 32, 64, 0, 0 if small else sectors, 0x80, 0, 0x29, 0x70786564,
            b"NO NAME    ", b"FAT16   ",
        )  # fmt: skip
        return fields.ljust(SECTOR - 2, b"\0") + _SIGN


def _leaves(folder: _Folder) -> Iterator[_Leaf]:
    for each in folder.entries.values():
        if isinstance(each, _Folder):
            yield from _leaves(each)
        else:
            yield each


def _entry(name: str, kind: int, first: int, size: int) -> bytes:
    stem, _, suffix = (name, "", "") if name in (".", "..") else name.partition(".")
    assert len(stem) <= 8
    assert len(suffix) <= 3
    short = stem.ljust(8).encode() + suffix.ljust(3).encode()
    return struct.pack(
        "<11sBBBHHHHHHHI", short, kind, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, first, size
    )
