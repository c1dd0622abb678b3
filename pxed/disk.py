"""Files that appear whole or not at all, and copies that cost no more than their data."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pxed.errors import ReadOnlyDisk

_FICLONE = 0x40049409  # linux/fs.h
STEP = 8 << 20  # bytes copied or read between two calls of ``progress``
_HOLE = 64 << 10  # zeros of this length become a hole where holes cannot be asked for
_ZEROS = bytes(_HOLE)

Progress = Callable[[int], None]
"""Called with the number of bytes that were worked through since the last call."""


def refuse_read_only(directory: Path) -> None:
    """ReadOnlyDisk if nothing can be written below ``directory``.

    A change is tried, of its time: the flags of a file system that failed may still say that it can
    be written to.
    """
    try:
        os.utime(directory)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ReadOnlyDisk(directory) from None


def nothing(_count: int) -> None:
    """The progress of those who do not ask."""


def copy_data(
    source: int, target: int, size: int, progress: Progress = nothing, start: int = 0
) -> None:
    """Make ``target`` (empty) equal to ``size`` bytes of ``source`` from ``start`` on, with holes.

    Shares the blocks where the file system can (FICLONE), else copies only data extents. OSError.
    """
    if not start and size == os.lseek(source, 0, os.SEEK_END):
        with contextlib.suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            progress(size)
            return
    os.ftruncate(target, size)
    at = 0
    for begin, end in extents(source, size, start):
        progress(begin - at)
        while begin < end:
            copied = _copy(source, target, min(end - begin, STEP), begin, start)
            if copied == 0:
                raise OSError(errno.EIO, "the source is shorter than its size")
            begin += copied
            progress(copied)
        at = end
    progress(size - at)


def _copy(source: int, target: int, count: int, at: int, start: int) -> int:
    try:
        return os.copy_file_range(source, target, count, start + at, at)
    except OSError as error:
        # Another file system, or a block device: by hand, and zeros stay holes.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    data = os.pread(source, count, start + at)
    whole = memoryview(data)
    for offset in range(0, len(data), _HOLE):
        piece = whole[offset : offset + _HOLE]
        if piece != _ZEROS[: len(piece)]:
            done = 0
            while done < len(piece):
                done += os.pwrite(target, piece[done:], at + offset + done)
    return len(data)


def extents(fd: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where data is among ``size`` bytes from ``start`` on: (begin, end), counted from there.

    A device is all data.
    """
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, start + at, os.SEEK_DATA) - start
            end = os.lseek(fd, start + begin, os.SEEK_HOLE) - start
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            if error.errno != errno.EINVAL:
                raise
            begin, end = at, size
        if begin >= size:
            return
        yield begin, min(end, size)
        at = end


def sync_directory(directory: Path) -> None:
    """Names that were made or changed in ``directory`` are on the disk when this returns."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give(path: Path, uid: int, gid: int) -> None:
    """Change the owner of ``path`` and all below; symbolic links are changed, never followed."""
    os.chown(path, uid, gid, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        for _, folders, files, fd in os.fwalk(path, follow_symlinks=False):
            for name in (*folders, *files):
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the small file ``path``: after a crash it is the old one or the new one. OSError."""
    new = path.parent / f".new-{path.name}-{os.getpid()}"
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
