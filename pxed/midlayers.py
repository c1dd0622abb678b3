"""Midlayers: each client's own writable file system, a sparse file cloned from a template (M9).

``mkfs.ext4`` runs once for a size; a clone shares the template's blocks where the file system can
(FICLONE) and otherwise copies only its data extents, so it takes milliseconds either way.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from pxed import disk
from pxed.errors import HostError
from pxed.mac import Mac

REPORT_BYTES = 16 * 1024
"""Size of a report device: 32 lines of 512 bytes."""


class Midlayers:
    """The files of all clients below ``directory``; every method may block on the disk.

    HostError (one line) when the disk is full, not writable, or mkfs.ext4 fails.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.template = directory / f".template-{size >> 10}K.ext4"

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
        if not (self.template.exists() and self.template.stat().st_size == self.size):
            self._make_template()

    def path(self, mac: Mac) -> Path:
        """Where this client's midlayer is or would be."""
        return self.directory / f"{mac.replace(':', '')}.ext4"

    def report_path(self, mac: Mac) -> Path:
        """Where this client's report device is or would be."""
        return self.directory / f"{mac.replace(':', '')}.report"

    def exists(self, mac: Mac) -> bool:
        return self.path(mac).exists() and self.report_path(mac).exists()

    def prepare(self, mac: Mac) -> bool:
        """Make sure that this client has its midlayer and report files; True if the first is new.

        An existing one is never touched. The new file appears under its name only when complete.
        """
        report = self.report_path(mac)
        if not report.exists():
            self._appear(report, lambda fd: os.ftruncate(fd, REPORT_BYTES))
        path = self.path(mac)
        if path.exists():
            return False
        with self.template.open("rb") as template:
            self._appear(path, lambda fd: disk.copy_data(template.fileno(), fd, self.size))
        return True

    def _make_template(self) -> None:
        # Inode tables of a sparse file are zero already: mke2fs then marks them as done, and no
        # client spends its first minute writing zeros over the wire.
        def make(fd: int) -> None:
            os.ftruncate(fd, self.size)
            made = subprocess.run(
                ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-L", "config",
                 "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
                 f"/proc/{os.getpid()}/fd/{fd}"],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            if made.returncode != 0:
                why = made.stderr.strip().splitlines()
                raise HostError(f"mkfs.ext4 failed: {why[-1] if why else made.returncode}")

        self._appear(self.template, make)

    def _appear(self, path: Path, fill: Callable[[int], None]) -> None:
        """Write a new file under a temporary name, sync it, then give it its own."""
        new = path.parent / f".new-{path.name}"
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fill(fd)
                os.fdatasync(fd)
            finally:
                os.close(fd)
            new.rename(path)
            disk.sync_directory(path.parent)
        except FileNotFoundError as error:
            missing = error.filename or "mkfs.ext4"
            raise HostError(f"{missing}: not found: is e2fsprogs installed?") from error
        except OSError as error:
            hint = "free some space" if error.errno == errno.ENOSPC else "check the disk"
            raise HostError(f"{path}: {error.strerror}: {hint}") from error
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
