"""Midlayers: each client's own writable file system, a sparse file cloned from a template (M9).

``mkfs.ext4`` runs once for a size; a clone shares the template's blocks where the file system can
(FICLONE) and otherwise copies only its data extents, so it takes milliseconds either way.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pxed import disk, ext4
from pxed.errors import HostError, ReadOnlyDisk, UsageError
from pxed.mac import Mac, mac_text

_FULL = 1 << 20  # bytes: where less is free it was that
REPORT_BYTES = 16 * 1024
"""Size of a report device: 32 lines of 512 bytes."""


class NoRoom(HostError):
    """A new midlayer was refused so that those that exist can go on being written to."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``prepare`` found or did: ``new``, and what a check of the file system led to.

    ``damage``: why it is not shown to its client; empty if it is.
    """

    new: bool
    checked: str = ""
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One midlayer on the disk; ``used`` bytes of ``size`` are allocated."""

    mac: Mac
    size: int
    used: int
    changed: float
    state: str  # clean, unclean, damaged
    old: bool  # the one before a reset or restore is kept too


class Midlayers:
    """The files of all clients below ``directory``; every method may block on the disk.

    ``keep_free``: bytes of the disk that new midlayers may not touch. HostError (one line) when the
    disk is full, not writable, or mkfs.ext4 fails. Threads may prepare different clients at once.
    """

    def __init__(self, directory: Path, size: int, keep_free: int = 0) -> None:
        self.directory = directory
        self.size = size
        self.keep_free = keep_free
        self._making = threading.Lock()
        self._syncing = threading.Lock()
        self._renamed = self._synced = 0
        self._in_memory: dict[Mac, int] = {}  # report devices, while the disk takes none
        self._memory: dict[Mac, int] = {}  # those and earlier ones: somebody may still look there

    @property
    def template(self) -> Path:
        """The file that new midlayers of the usual size are cloned from."""
        return self._template(self.size)

    def open(self) -> None:
        """Make the directory and the template, and remove what an interrupted run left."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(".new-*"):
                leftover.unlink()
        except OSError as error:
            raise HostError(
                f"{self.directory}: {error.strerror}: choose another state_dir"
            ) from error
        self._have_template(self.size)

    def path(self, mac: Mac) -> Path:
        """Where this client's midlayer is or would be."""
        return self.directory / f"{mac.replace(':', '')}.ext4"

    def old_path(self, mac: Mac) -> Path:
        """Where the midlayer before this one is, if there was one."""
        return self.directory / f"{mac.replace(':', '')}.ext4.old"

    def report_path(self, mac: Mac) -> Path:
        """Where this client's report device is or would be."""
        if (fd := self._in_memory.get(mac)) is not None:
            return Path(f"/proc/self/fd/{fd}")
        return self.directory / f"{mac.replace(':', '')}.report"

    def exists(self, mac: Mac) -> bool:
        return self.path(mac).exists() and self.report_path(mac).exists()

    def is_unclean(self, mac: Mac) -> bool:
        """Whether this client's midlayer is there and was not closed cleanly: one read."""
        path = self.path(mac)
        try:
            return path.exists() and not ext4.look(path).clean
        except (UsageError, HostError):
            return True

    def present(self) -> set[Mac]:
        """Everybody whose midlayer and report files are there; one look at the directory."""
        names = {entry.name for entry in os.scandir(self.directory)}
        found = set()
        for name in names:
            stem, _, suffix = name.partition(".")
            if suffix == "ext4" and len(stem) == 12 and f"{stem}.report" in names:
                found.add(Mac(":".join(stem[at : at + 2] for at in range(0, 12, 2))))
        return found

    # For a boot

    def prepare(
        self, mac: Mac, size: int | None = None, *, fresh: bool = False, check: bool = False
    ) -> Prepared:
        """Make sure that this client has its midlayer and report files.

        An existing one is never written over: ``fresh`` renames it to ``.old`` and makes another.
        ``check``: one that was not closed cleanly is mended first; only while nobody uses it. The
        new file appears under its name only when complete. NoRoom: none was made. ReadOnlyDisk: the
        midlayer is as it was, and the report device in memory.
        """
        self.prepare_report(mac)
        self.refuse_read_only()
        path = self.path(mac)
        if fresh and path.exists():
            self.refuse_if_full()
            with _host_errors(path):
                path.rename(self.old_path(mac))
        if path.exists():
            if not check or ext4.look(path).clean:
                return Prepared(False)
            return Prepared(False, ext4.mend(path))
        self.refuse_if_full()
        size = size or self.size
        with self._have_template(size).open("rb") as template:
            self._appear(path, lambda fd: disk.copy_data(template.fileno(), fd, size))
        return Prepared(True)

    def prepare_report(self, mac: Mac) -> None:
        """Make sure that this client has its report file: in memory where the disk takes none."""
        try:
            self.refuse_read_only()
        except ReadOnlyDisk:
            if mac not in self._memory:
                self._memory[mac] = os.memfd_create("report", os.MFD_CLOEXEC)
                os.ftruncate(self._memory[mac], REPORT_BYTES)
            self._in_memory[mac] = self._memory[mac]
            return
        self._in_memory.pop(mac, None)
        report = self.report_path(mac)
        # Not synced: after a power cut it may be there without its size, and is made again.
        if not report.exists() or report.stat().st_size != REPORT_BYTES:
            with _host_errors(report):
                fd = os.open(report, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.ftruncate(fd, REPORT_BYTES)
                finally:
                    os.close(fd)

    def free(self) -> int:
        """Bytes that are free on the disk below."""
        about = os.statvfs(self.directory)
        return about.f_bavail * about.f_frsize

    def refuse_read_only(self) -> None:
        """ReadOnlyDisk if nothing can be written here."""
        disk.refuse_read_only(self.directory)

    def refuse_if_full(self) -> None:
        """NoRoom if the disk has no more than ``keep_free`` left."""
        with _host_errors(self.directory):
            free = self.free()
        if free < self.keep_free:
            raise NoRoom(
                f"{self.directory}: only {free >> 20} MiB are free and [midlayer] keep_free is "
                f"{self.keep_free >> 20} MiB: no new midlayer; free some space (pxed midlayer gc)"
            )

    # For people

    def layers(self) -> list[Layer]:
        """Every midlayer that is there, by MAC."""
        found = []
        for path in sorted(self.directory.glob("*.ext4")):
            try:
                mac = mac_text(bytes.fromhex(path.stem))
                about = path.stat()
            except (ValueError, OSError):  # a template, or gone in the meantime
                continue
            try:
                seen = ext4.look(path)
                state = "clean" if seen.clean else "damaged" if seen.errors else "unclean"
            except (UsageError, HostError):
                state = "damaged"
            old = self.old_path(mac).exists()
            used = about.st_blocks * 512
            found.append(Layer(mac, about.st_size, used, about.st_mtime, state, old))
        return found

    def backup(self, mac: Mac, target: Path) -> int:
        """Copy a midlayer that nobody uses to the new file ``target``; the bytes it takes there."""
        path = self._existing(mac)
        if target.exists():
            raise UsageError(f"{target}: is there already: choose another file")
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent}: no such directory")
        self._copy(path, target)
        return target.stat().st_blocks * 512

    def restore(self, mac: Mac, source: Path | None) -> None:
        """Make ``source`` (None: the one before) the midlayer; what it replaces is kept as old."""
        path, old = self.path(mac), self.old_path(mac)
        if source is None:
            if not old.exists():
                raise UsageError(f"{mac}: there is no midlayer from before")
            with _host_errors(path):
                spare = self.directory / f".swap-{path.name}"
                if path.exists():
                    path.rename(spare)
                old.rename(path)
                if spare.exists():
                    spare.rename(old)
                disk.sync_directory(self.directory)
            return
        try:
            about = source.stat()
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from None
        if about.st_size % 4096 or ext4.look(source).size > about.st_size:
            raise UsageError(f"{source}: is no whole file system of 4 KiB blocks")
        if about.st_blocks * 512 > self.free() - self.keep_free:
            raise NoRoom(f"{self.directory}: too little space for {source}")
        self._replace(path, old, lambda new: self._copy(source, new))

    def resize(self, mac: Mac, size: int) -> None:
        """Give a midlayer that nobody uses another size; as it was before is kept as old."""
        path = self._existing(mac)

        def fill(new: Path) -> None:
            self._copy(path, new)
            ext4.resize(new, size)

        self._replace(path, self.old_path(mac), fill)

    def remove(self, mac: Mac, *, only_old: bool = False) -> int:
        """Delete the files of a client that does not use them; the bytes that this frees."""
        paths = [self.old_path(mac)]
        if not only_old:
            paths += [self.path(mac), self.report_path(mac)]
        freed = 0
        if not only_old and (fd := self._memory.pop(mac, None)) is not None:
            self._in_memory.pop(mac, None)
            os.close(fd)
        with _host_errors(self.directory):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    freed += path.stat().st_blocks * 512
                    path.unlink()
        return freed

    # Inside

    def _existing(self, mac: Mac) -> Path:
        path = self.path(mac)
        if not path.exists():
            raise UsageError(f"{mac} has no midlayer yet: it gets one at its first boot")
        return path

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as reader:
            size = os.fstat(reader.fileno()).st_size
            self._appear(target, lambda fd: disk.copy_data(reader.fileno(), fd, size))

    def _replace(self, path: Path, old: Path, fill: Callable[[Path], None]) -> None:
        new = self.directory / f".new-as-{path.name}"
        try:
            fill(new)
            with _host_errors(path):
                if path.exists():
                    path.rename(old)
                new.rename(path)
                disk.sync_directory(self.directory)
        finally:
            with contextlib.suppress(OSError):
                new.unlink()

    def _template(self, size: int) -> Path:
        return self.directory / f".template-{size >> 10}K.ext4"

    def _have_template(self, size: int) -> Path:
        template = self._template(size)
        with self._making:
            if not (template.exists() and template.stat().st_size == size):

                def make(fd: int) -> None:
                    os.ftruncate(fd, size)
                    try:
                        ext4.make(fd, "config")
                    except HostError:
                        if self.free() >= _FULL:
                            raise
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None

                self._appear(template, make)
        return template

    def _appear(self, path: Path, fill: Callable[[int], None]) -> None:
        """Write a new file under a temporary name, sync it, then give it its own."""
        new = path.parent / f".new-{path.name}"
        with _host_errors(path):
            try:
                fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    fill(fd)
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
                new.rename(path)
                if path.parent == self.directory:
                    self._sync_names()
                else:
                    disk.sync_directory(path.parent)
            finally:
                with contextlib.suppress(OSError):
                    new.unlink()

    def _sync_names(self) -> None:
        """Return when the renames before this call are on the disk; one sync serves many."""
        self._renamed += 1  # two threads that count the same only share their sync
        mine = self._renamed
        with self._syncing:
            if self._synced < mine:
                upto = self._renamed
                disk.sync_directory(self.directory)
                self._synced = upto


@contextlib.contextmanager
def _host_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ReadOnlyDisk(path) from error
        hint = "free some space" if error.errno == errno.ENOSPC else "check the disk"
        raise HostError(f"{path}: {error.strerror}: {hint}") from error
