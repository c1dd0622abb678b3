"""The files of an image: which they are, copied with their digests, and compared with them.

``pxed.library`` keeps the directories; this reads and writes what is in them.
"""

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pxed import disk, ext4, images
from pxed.errors import HostError, UsageError
from pxed.images import SLOTS

Report = Callable[[str, int, int], None]
"""Progress: what is done, bytes done, bytes in all."""


def quiet(_what: str, _done: int, _total: int) -> None:
    """The progress of those who do not ask."""


@dataclass(frozen=True, slots=True)
class Source:
    """What ``Library.add`` makes an image of: a directory, or single devices.

    What ``name``, ``version`` and so on leave open is taken from the directory's manifest.
    ``copy``: copy block devices too, rather than serve them where they are.
    """

    directory: Path | None = None
    devices: Mapping[str, Path] = field(default_factory=dict)
    name: str = ""
    version: str = ""
    class_name: str = ""
    released: str = ""
    copy: bool = False


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory that is to be added, complete by itself."""
    images.load(directory)  # with its errors
    data: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return data


def plan(source: Source, said: dict[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Which file goes where in the image, and what its manifest says of the devices."""
    from aoe_fast.store import mounted_read_write  # compiled: only where it is needed

    chosen: dict[str, Path] = {}
    devices: dict[str, str] = dict(said.get("devices", {}))
    if source.directory is not None:
        chosen = {str(p.relative_to(source.directory)): p for p in files_of(source.directory)}
    for device, path in source.devices.items():
        if device not in SLOTS:
            raise UsageError(f"{device!r} is no device: there are {', '.join(SLOTS)}")
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if stat.S_ISBLK(mode):
            where = mounted_read_write(path.stat().st_rdev)
            if where is not None:
                raise UsageError(
                    f"{path}: is mounted read-write on {where}: it would change under the "
                    "clients; unmount it, or give a read-only snapshot of it"
                )
        elif not stat.S_ISREG(mode):
            raise UsageError(f"{path}: is no file and no block device")
        if chosen.pop(devices.get(device, ""), None):
            devices.pop(device)
        if stat.S_ISBLK(mode) and not source.copy:
            devices[device] = str(path.absolute())
        else:
            suffix = path.suffix if stat.S_ISREG(mode) else ".img"
            devices[device] = f"{device}{suffix or '.img'}"
            chosen[devices[device]] = path
    missing = {"boot", "root"} - devices.keys()
    if missing:
        raise UsageError(f"an image needs boot and root: give --{min(missing)} FILE")
    ext4.check_unmounted(chosen.get(devices["root"], Path(devices["root"])))
    return chosen, devices


def fill(
    new: Path, plan: Mapping[str, Path], known: Mapping[str, str], report: Report
) -> dict[str, Any]:
    """Copy what ``plan`` says into ``new``; size and digest of each file, as a manifest has them.

    UsageError for a file whose digest is not the ``known`` one; HostError for want of space.
    """
    sizes = {name: _size(path) for name, path in plan.items()}
    total = 2 * sum(sizes.values())  # each is copied, then read for its digest
    done = 0
    sums: dict[str, Any] = {}

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(name, min(done, total), total)

    room = shutil.disk_usage(new).free
    if sum(p.stat().st_blocks * 512 for p in plan.values()) > room:
        raise HostError(f"{new.parent}: only {room >> 20} MiB are free: not enough for this image")
    for name, path in plan.items():
        target = new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as reader, target.open("xb") as writer:
            disk.copy_data(reader.fileno(), writer.fileno(), sizes[name], progress)
        with target.open("r+b") as file:
            digest = sha256_of(file.fileno(), sizes[name], progress)
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o444)
        if known.get(name, digest) != digest:
            raise UsageError(
                f"{path}: its sha256 is not the one in its manifest: it was damaged on its way here"
            )
        sums[name] = {"size": sizes[name], "sha256": digest}
    return sums


def known_sums(source: Source, said: dict[str, Any]) -> dict[str, str]:
    """The digests that the manifest of ``source`` brings, of the files that are taken from it."""
    known = {name: each["sha256"] for name, each in said.get("files", {}).items()}
    for device in source.devices:
        known.pop(said.get("devices", {}).get(device, ""), None)
    return known


def sums_of(directory: Path, report: Report) -> dict[str, Any]:
    """Size and digest of each file of an image directory, as a manifest has them. OSError."""
    found = files_of(directory)
    total = sum(path.stat().st_size for path in found)
    done = 0
    sums: dict[str, Any] = {}

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report("digests", min(done, total), total)

    for path in found:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = sha256_of(file.fileno(), size, progress)
            os.fsync(file.fileno())
        sums[str(path.relative_to(directory))] = {"size": size, "sha256": digest}
    return sums


def files_of(directory: Path) -> list[Path]:
    """The files of an image directory without its manifest; UsageError for what is no plain file.

    A symbolic link stands for its file if that lies in the directory too.
    """
    found = []
    for path in sorted(directory.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file() or not path.resolve().is_relative_to(directory.resolve()):
            raise UsageError(f"{path}: an image has plain files only")
        if path.relative_to(directory) != Path("manifest.json"):
            found.append(path)
    return found


def _size(path: Path) -> int:
    with path.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_END)


def sha256_of(fd: int, size: int, progress: disk.Progress) -> str:
    """sha256 of the first ``size`` bytes; a hole is not read from the disk."""
    digest = hashlib.sha256()
    zeros = bytes(1 << 20)
    at = 0
    for begin, end in [*disk.extents(fd, size), (size, size)]:
        while at < begin:
            count = min(len(zeros), begin - at)
            digest.update(zeros[:count])
            at += count
            progress(count)
        while at < end:
            data = os.pread(fd, min(disk.STEP, end - at), at)
            if not data:
                return ""  # it shrank: equal to nothing
            digest.update(data)
            at += len(data)
            progress(len(data))
    return digest.hexdigest()


def today() -> str:
    """The date, as ``released`` has it."""
    return time.strftime("%Y-%m-%d")


def text(data: Mapping[str, Any]) -> str:
    """A manifest or the like, as it is written."""
    return json.dumps(data, indent=1) + "\n"
