"""An image directory in the making: checked, built beside its place, there whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pxed.errors import HostError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICES = {"boot": "boot.img", "root": "root.squashfs"}
TFM = {"tfm": "tfm.img"}
"""Beside the devices of ``Manifest``, for an image with a maintenance disk."""
_KERNEL = {"vmlinuz": "vmlinuz", "initrd": "initrd"}
TFM_INITRD = "initrd.tfm"
"""Maintenance mode's initramfs; its kernel is the image's own."""
PRIVATE = 0o640
"""Mode of a root with accounts: the segment can read it, but not every account of the server."""
_NEW = ".new-"
_HOSTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says: the image's name, version, class, device files and kernel.

    ``maintenance``: the kernel command line of maintenance mode, for an image that has it;
    ``tree``: the directory that a Raspberry Pi boots from; ``kernel`` empty: iPXE cannot load it;
    ``efi``: one EFI program with all that it takes.
    """

    name: str
    version: str
    machine_class: str
    cmdline: str
    devices: dict[str, str] = field(default_factory=lambda: dict(_DEVICES))
    released: str = ""
    maintenance: str = ""
    origin: dict[str, str] = field(default_factory=dict)
    diskless_only: str = ""
    kernel: dict[str, str] = field(default_factory=lambda: dict(_KERNEL))
    tree: str = ""
    efi: str = ""

    def to_json(self) -> str:
        """The text of manifest.json."""
        said = asdict(self)
        said["class"] = said.pop("machine_class")
        said["kernel"] = {**self.kernel, "cmdline": said.pop("cmdline")}
        order = ["name", "version", "class", "devices"]
        if self.released:
            order.insert(3, "released")
        if self.kernel:
            order.append("kernel")
        if self.maintenance:
            said["maintenance"] = {
                **_KERNEL, "initrd": TFM_INITRD, "cmdline": self.maintenance
            }  # fmt: skip
            order.append("maintenance")
        order += [key for key in ("tree", "efi", "origin", "diskless_only") if said[key]]
        return json.dumps({key: said[key] for key in order}, indent=1) + "\n"


@contextlib.contextmanager
def image_directory(destination: Path, manifest: Manifest) -> Iterator[Path]:
    """A directory to build in; ``destination`` once the block ends well, and gone if it does not.

    UsageError for a name that cannot be a directory's, a command line of several lines, or a
    destination in use, also if that is another build's meanwhile; HostError where nothing can be
    written.
    """
    for word in (manifest.name, manifest.version):
        if not _NAME.fullmatch(word):
            raise UsageError(f"{word!r}: a name or version is letters, digits, '.', '_' and '-'")
    if "\n" in manifest.cmdline:
        raise UsageError("a kernel command line is one line")
    if destination.exists() and any(destination.iterdir()):
        raise UsageError(f"{destination} is not empty: choose another version")
    with host_errors(destination), workplace(destination.parent) as work:
        fresh = work / "image"
        fresh.mkdir()
        yield fresh
        (fresh / "manifest.json").write_text(manifest.to_json())
        try:
            fresh.rename(destination)  # takes an empty directory's place
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise UsageError(
                f"{destination} was made by somebody else meanwhile: choose another version"
            ) from None


@contextlib.contextmanager
def host_errors(place: Path) -> Iterator[None]:
    """A disk that is full or cannot be written is a HostError, with the file if that is known."""
    try:
        yield
    except OSError as error:
        if error.errno not in _HOSTS:
            raise
        where = error.filename2 or error.filename or place
        raise HostError(f"{where}: {error.strerror}: nothing was made") from error


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A temporary directory in ``parent``; those that killed programs left there go first.

    Whoever works in one holds a lock on it, so that a directory without a lock is nobody's. What is
    made in the block has the usual modes, whatever the caller's umask: seats get some of it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent):
        for old in parent.glob(f"{_NEW}*"):
            with contextlib.suppress(OSError), _locked(old, wait=False):
                shutil.rmtree(old, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=_NEW, dir=parent))
        hold = contextlib.ExitStack()
        hold.enter_context(_locked(work))
    umask = os.umask(0o022)
    try:
        yield work
    finally:
        os.umask(umask)
        shutil.rmtree(work, ignore_errors=True)
        hold.close()


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def epoch_now() -> int:
    """$SOURCE_DATE_EPOCH, else today at 0:00 UTC; UsageError if it is no number."""
    said = os.environ.get("SOURCE_DATE_EPOCH")
    if said is None:
        return int(time.time()) // 86400 * 86400
    if not said.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH={said}: must be a number of seconds since 1970")
    return int(said)


def day_of(epoch: int) -> str:
    """The day of that second, as YYYY-MM-DD, in UTC."""
    return datetime.fromtimestamp(epoch, UTC).date().isoformat()


def dated(epoch: int | None) -> dict[str, str]:
    """An environment for programs that write ``epoch`` where they would write the time."""
    return {**os.environ, **({} if epoch is None else {"SOURCE_DATE_EPOCH": str(epoch)})}


def squash(
    root: Path, destination: Path, *options: str, epoch: int | None = None, timeout: float = 60
) -> None:
    """``root`` as one squashfs; its size is a multiple of 4 KiB. ``options`` go to mksquashfs.

    Nothing in it is younger than ``epoch``.
    """
    argv: Sequence[str] = [
        "mksquashfs", str(root), str(destination), "-b", "128K", "-noappend", "-no-progress",
        "-quiet", *options,
    ]  # fmt: skip
    try:
        subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=timeout, env=dated(epoch)
        )
    except FileNotFoundError:
        raise HostError("mksquashfs is missing: apt install squashfs-tools") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"mksquashfs took longer than {timeout:.0f} s: is the disk full?") from None
    except subprocess.CalledProcessError as error:
        raise HostError(f"mksquashfs failed: {error.stderr.strip()}") from None
    spare = -destination.stat().st_size % 4096
    if spare:
        os.truncate(destination, destination.stat().st_size + spare)
