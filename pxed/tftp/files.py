"""Which bytes a TFTP name stands for. Nothing outside the root is ever opened.

In this order: virtual files (bytes), mounts (a prefix such as a Pi's serial number, with a
directory of its own), the root directory, and where that has no such file, aliases (files from
elsewhere).
"""

import ctypes
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pxed.errors import UsageError
from pxed.tftp.codec import Code, TftpError
from pxed.tftp.session import Bytes, File

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIR = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class DiskFile:
    """An open regular file, read with pread: a file that shrinks is a short read, not a signal."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    @property
    def source(self) -> int | bytes:
        return self._fd

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def clean(name: str) -> str:
    """The name as it is looked up: backslashes are slashes, leading and doubled ones dropped.

    TftpError if it leads upwards or is empty.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        raise TftpError("a file name is missing", Code.NOT_FOUND)
    if ".." in parts or any("\0" in part for part in parts):
        raise TftpError("a name with .. is not served", Code.ACCESS)
    return "/".join(parts)


class Files:
    """The TFTP name space. ``root`` None: there are only virtual files, aliases and mounts.

    ``virtual`` and ``aliases`` may be changed while it serves. UsageError if ``root`` is no
    directory.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        virtual: Mapping[str, bytes] | None = None,
        aliases: Mapping[str, Path] | None = None,
        fold_case: bool = False,
    ) -> None:
        self.virtual: dict[str, bytes] = dict(virtual or {})
        self.aliases: dict[str, Path] = dict(aliases or {})
        self.fold_case = fold_case
        self._mounts: dict[str, int] = {}
        self._root = -1 if root is None else _open_directory(root)

    def mount(self, prefix: str, directory: Path) -> None:
        """Serve ``directory`` below ``prefix``, such as a Pi's serial number (M7).

        UsageError if it is no directory, TftpError if the prefix is no name.
        """
        fd = _open_directory(directory)
        self.unmount(prefix)
        self._mounts[clean(prefix)] = fd

    def unmount(self, prefix: str) -> None:
        """Serve it no longer; open transfers go on. Unknown ones are fine."""
        fd = self._mounts.pop(clean(prefix), None)
        if fd is not None:
            os.close(fd)

    def open(self, name: str, client: str = "") -> File:
        """The file; TftpError with the code for the client if there is none or it may not be read.

        ``client`` (its address) makes no difference here; a wrapper may use it.
        """
        path = clean(name)
        content = self.virtual.get(path)
        if content is not None:
            return Bytes(content)
        try:
            first, _, rest = path.partition("/")
            if rest and first in self._mounts:
                return self._below(self._mounts[first], rest)
            alias = self.aliases.get(path)
            if self._root >= 0:
                try:
                    return self._below(self._root, path)
                except FileNotFoundError:
                    if alias is None:
                        raise
            if alias is not None:
                return _regular(os.open(alias, _FLAGS))
        except OSError as error:
            raise _refusal(error) from None
        raise TftpError("file not found", Code.NOT_FOUND)

    def close(self) -> None:
        """Give the directories up; closing twice is fine."""
        for prefix in list(self._mounts):
            self.unmount(prefix)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _below(self, root: int, path: str) -> File:
        try:
            return _regular(open_beneath(root, path, _FLAGS))
        except FileNotFoundError:
            folded = _fold(root, path) if self.fold_case else None
            if folded is None or folded == path:
                raise
            return _regular(open_beneath(root, folded, _FLAGS))


def open_beneath(root: int, path: str, flags: int) -> int:
    """A descriptor of ``path`` below the directory ``root``; OSError if it leads out or is missing.

    Symlinks may point about below the root (openat2 with RESOLVE_BENEATH); on a kernel without that
    call none is followed.
    """
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return int(fd)
    code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EPERM):
        raise OSError(code, os.strerror(code))
    return _walk(root, path, flags)


def _walk(root: int, path: str, flags: int) -> int:
    """``open_beneath`` one component at a time, following no symlink."""
    *parents, name = path.split("/")
    here = os.dup(root)
    try:
        for part in parents:
            below = os.open(part, _DIR | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _fold(root: int, path: str) -> str | None:
    """The path below ``root`` that differs from ``path`` only in case, the first by name."""
    found: list[str] = []
    for part in path.split("/"):
        try:
            fd = open_beneath(root, "/".join(found) or ".", _DIR)
        except OSError:
            return None
        try:
            names = sorted(name for name in os.listdir(fd) if name.casefold() == part.casefold())
        finally:
            os.close(fd)
        if not names:
            return None
        found.append(part if part in names else names[0])
    return "/".join(found)


def _regular(fd: int) -> File:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise TftpError("not a regular file", Code.ACCESS)
    return DiskFile(fd, info.st_size)


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, _DIR)
    except OSError as error:
        raise UsageError(f"cannot serve {path} by TFTP: {error.strerror}") from None


def _refusal(error: OSError) -> TftpError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
            return TftpError("file not found", Code.NOT_FOUND)
        case errno.EXDEV | errno.ELOOP | errno.EACCES | errno.EPERM:
            return TftpError("access denied", Code.ACCESS)
        case _:
            return TftpError(f"cannot open: {error.strerror}", Code.UNDEFINED)
