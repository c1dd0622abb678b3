"""Writes the "newc" cpio archive that the Linux kernel unpacks as its initramfs."""

import stat
from dataclasses import dataclass, field

_TRAILER = "TRAILER!!!"


@dataclass
class Cpio:
    """Collects entries; ``bytes()`` is the archive. Everything belongs to root, times are 0.

    Parent directories are added by themselves, so the same content gives the same bytes.
    """

    _blob: bytearray = field(default_factory=bytearray)
    _names: set[str] = field(default_factory=set)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory, if it is not there yet."""
        if name and name not in self._names:
            self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def __bytes__(self) -> bytes:
        done = self._blob + _record(_TRAILER, 0, b"", 0)
        return bytes(done + b"\0" * (-len(done) % 512))

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        name = name.strip("/")
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        self.directory(name.rpartition("/")[0])
        self._names.add(name)
        self._blob += _record(name, mode, data, len(self._names))


def _record(name: str, mode: int, data: bytes, inode: int) -> bytes:
    raw = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    #        ino    mode        uid gid        mtime    size    dev     rdev         name     check
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + raw
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
