"""The library of images in a state directory: added, checked, switched, rolled back, removed.

Every change is one rename, so a reader sees the old state or the new one, and an interrupted one is
cleaned by the next. Two administrators at once wait for each other at ``images/.lock``.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pxed import disk, images
from pxed.config import CLASSES
from pxed.errors import HostError, UsageError
from pxed.images import HISTORY, SLOTS, STABLE, Image

RESERVED = (STABLE, "canary")
_STALE = 86400.0  # seconds after which a directory that somebody was making counts as left behind

Report = Callable[[str, int, int], None]
"""Progress: what is done, bytes done, bytes in all."""


def _quiet(_what: str, _done: int, _total: int) -> None:
    pass


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


@dataclass(frozen=True, slots=True)
class Finding:
    """What ``Library.verify`` says of one file; ``good`` None: there is nothing to compare with."""

    file: str
    good: bool | None
    text: str


class Library:
    """The images below ``directory``; every method may block on the disk.

    UsageError for what cannot be meant, HostError for a disk that is full or refuses.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    # Looking

    def all(self) -> tuple[list[Image], list[str]]:
        """Every image that is whole, and one line for each that is not."""
        good, bad = [], []
        for name in images.names(self.directory):
            for version in images.versions(self.directory, name):
                try:
                    good.append(images.load(self.directory / name / version))
                except UsageError as error:
                    bad.append(str(error))
        return good, bad

    def find(self, spec: str, class_name: str = "") -> Image:
        return images.find(self.directory, spec, class_name)

    def channels_of(self, image: Image) -> list[str]:
        """The channels that point to this version."""
        past = images.channels(self.directory, image.name)
        return sorted(channel for channel, line in past.items() if line[-1] == image.version)

    def verify(self, image: Image, report: Report = _quiet) -> list[Finding]:
        """Read every file of an image and compare it with its digest."""
        total = sum(each.size for each in image.files.values())
        done = 0
        findings = []

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report(name, min(done, total), total)

        for name, wanted in image.files.items():
            try:
                with (image.directory / name).open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size != wanted.size:
                        text = f"has {size} bytes instead of {wanted.size}"
                        findings.append(Finding(name, False, text))
                        continue
                    good = _digest(file.fileno(), size, progress) == wanted.sha256
            except OSError as error:
                findings.append(Finding(name, False, error.strerror or "cannot be read"))
                continue
            findings.append(Finding(name, good, "as it was added" if good else "was CHANGED"))
        for device, path in image.devices.items():
            if not path.is_relative_to(image.directory):
                findings.append(Finding(device, None, f"{path}: served in place, no digest"))
            elif str(path.relative_to(image.directory)) not in image.files:
                findings.append(Finding(device, None, f"{path.name}: no digest was recorded"))
        return findings

    # Changing

    def add(self, source: Source, report: Report = _quiet) -> Image:
        """Copy an image into the library; it appears when all of it is there and its sums agree.

        The first version of an image becomes its stable one; a later one waits for ``use``, also
        where no channel was ever set.
        """
        said = _read_manifest(source.directory) if source.directory is not None else {}
        name = images.word(source.name or str(said.get("name", "")), "name for an image")
        version = source.version or str(said.get("version", "")) or time.strftime("%Y.%m.%d")
        images.word(version, "version")
        if version in RESERVED or version in images.channels(self.directory, name):
            raise UsageError(f"{version!r} is the name of a channel: choose another version")
        class_name = source.class_name or str(said.get("class", "x86"))
        if class_name not in CLASSES:
            raise UsageError(f"class {class_name!r}: must be one of {', '.join(CLASSES)}")
        target = self.directory / name / version
        self._refuse_what_is_there(target)
        first = not images.versions(self.directory, name)
        with self._new_directory(name) as new:
            manifest: dict[str, Any] = {"name": name, "version": version, "class": class_name}
            released = source.released or str(said.get("released", "")) or _today()
            manifest["released"] = released
            plan, devices = _plan(source, said)
            manifest["devices"] = devices
            # How else it boots: its files came along.
            manifest |= {key: said[key] for key in ("kernel", "maintenance", "tree") if key in said}
            manifest["files"] = _fill(new, plan, _known_sums(source, said), report)
            disk.write_whole(new / "manifest.json", _text(manifest))
            images.load(new)
            self.keep_stable(name)
            with self._lock():
                self._refuse_what_is_there(target)
                new.rename(target)
                disk.sync_directory(target.parent)
                self._hand_over(target.parent)
        if first:
            self.use(f"{name}@{version}")
        return images.load(target)

    def keep_stable(self, name: str) -> bool:
        """Whether this image has no version yet; else what its name means stays what it means."""
        have = images.versions(self.directory, name)
        if have and STABLE not in images.channels(self.directory, name):
            self.use(f"{name}@{have[-1]}")
        return not have

    def seal(self, image: Image, report: Report = _quiet) -> Image:
        """Record size and digest of each file of an image that was made without them."""
        manifest = _read_manifest(image.directory)
        total = sum(p.stat().st_size for p in _files(image.directory))
        sums: dict[str, Any] = {}
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            report("digests", min(done, total), total)

        with _host_errors(image.directory):
            for path in _files(image.directory):
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    digest = _digest(file.fileno(), size, progress)
                sums[str(path.relative_to(image.directory))] = {"size": size, "sha256": digest}
            manifest["files"] = sums
            manifest.setdefault("released", _today())
            disk.write_whole(image.directory / "manifest.json", _text(manifest))
            self._hand_over(image.directory.parent)
        return images.load(image.directory)

    def use(self, spec: str, channel: str = STABLE) -> tuple[Image, str]:
        """Point a channel of the image to this version; the image, and what it was before."""
        images.word(channel, "channel")
        image = self.find(spec)
        if channel in images.versions(self.directory, image.name):
            raise UsageError(f"{channel!r} is a version of {image.name}: choose another channel")
        with self._lock():
            past = images.channels(self.directory, image.name)
            line = past.get(channel, [])
            before = line[-1] if line else ""
            if before != image.version:
                past[channel] = [*line, image.version][-HISTORY:]
                self._write_channels(image.name, past)
        return image, before

    def rollback(self, name: str, channel: str = STABLE) -> tuple[Image, str]:
        """Point a channel to the version it had before; that image, and the one that it left."""
        images.word(name, "image")
        with self._lock():
            past = images.channels(self.directory, name)
            line = past.get(channel, [])
            if len(line) < 2:
                raise UsageError(
                    f"{name}@{channel} has no version before this one: choose one with "
                    f"pxed image use {name}@VERSION"
                )
            left = line.pop()
            self._write_channels(name, past)
        return self.find(f"{name}@{line[-1]}"), left

    def remove(self, image: Image, in_use: Callable[[Image], str]) -> None:
        """Delete a version; UsageError with the reason that ``in_use`` gives, or of a channel's."""
        with self._lock():
            if held := self.channels_of(image):
                raise UsageError(
                    f"{image} is {image.name}@{held[0]}: first choose another version with "
                    f"pxed image use {image.name}@VERSION --channel {held[0]}"
                )
            if reason := in_use(image):
                raise UsageError(f"{image} is in use: {reason}")
            gone = image.directory.parent / f".gone-{image.version}-{os.getpid()}"
            with _host_errors(image.directory):
                image.directory.rename(gone)
                disk.sync_directory(gone.parent)
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(OSError):  # the last version: nothing is left to point to
            if not images.versions(self.directory, image.name):
                (gone.parent / "channels.json").unlink(missing_ok=True)
                gone.parent.rmdir()

    def channels(self, name: str) -> dict[str, list[str]]:
        """Where the channels of an image point, and pointed before."""
        return images.channels(self.directory, images.word(name, "name for an image"))

    def restore(self, name: str, past: Mapping[str, list[str]]) -> None:
        """Put back what ``channels`` told."""
        with self._lock():
            self._write_channels(name, past)

    def drop_channel(self, name: str, channel: str, *, last: bool = False) -> None:
        """Forget a channel other than stable; ``last``: stable too, its only version is to go."""
        if channel == STABLE and not last:
            raise UsageError(f"{STABLE} cannot be dropped: point it to another version")
        with self._lock():
            past = images.channels(self.directory, images.word(name, "image"))
            if past.pop(channel, None) is None:
                raise UsageError(f"{name} has no channel {channel!r}")
            self._write_channels(name, past)

    def clean(self) -> list[Path]:
        """Remove what interrupted calls left; directories that somebody still makes are kept."""
        removed = []
        for leftover in self.directory.glob("*/.[ang]*-*"):
            with contextlib.suppress(OSError):
                if leftover.is_dir() and _abandoned(leftover):
                    shutil.rmtree(leftover)
                    removed.append(leftover)
        return removed

    # Inside

    def _refuse_what_is_there(self, target: Path) -> None:
        if target.exists():
            raise UsageError(
                f"{target.parent.name}@{target.name} is there already, and an image never changes: "
                "choose another --version"
            )

    @contextlib.contextmanager
    def _new_directory(self, name: str) -> Iterator[Path]:
        """A directory that is gone afterwards unless it was renamed; locked while it is made."""
        self.clean()
        with _host_errors(self.directory / name):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
            new = self.directory / name / f".add-{os.getpid()}-{time.monotonic_ns()}"
            new.mkdir()
            fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield new
            finally:
                os.close(fd)
                shutil.rmtree(new, ignore_errors=True)
                with contextlib.suppress(OSError):
                    new.parent.rmdir()  # only if the image has nothing else

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with _host_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._hand_over(self.directory / ".lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write_channels(self, name: str, past: Mapping[str, list[str]]) -> None:
        path = self.directory / name / "channels.json"
        with _host_errors(path):
            disk.write_whole(path, _text(dict(past)))
            self._hand_over(path.parent)

    def _hand_over(self, path: Path) -> None:
        """What root made belongs to who owns the library: a server that is no longer root."""
        owner = self.directory.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            disk.give(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def _host_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise HostError(f"{where}: {error.strerror}: nothing was changed") from error


def _abandoned(directory: Path) -> bool:
    if directory.name.startswith(".new-"):  # pxed image build: it has no lock
        return time.time() - directory.stat().st_mtime > _STALE
    if directory.name.startswith(".gone-"):
        return True
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory that is to be added, complete by itself."""
    images.load(directory)  # with its errors
    data: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return data


def _plan(source: Source, said: dict[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Which file goes where in the image, and what its manifest says of the devices."""
    from aoe_fast.store import mounted_read_write  # compiled: only where it is needed

    plan: dict[str, Path] = {}
    devices: dict[str, str] = dict(said.get("devices", {}))
    if source.directory is not None:
        plan = {str(p.relative_to(source.directory)): p for p in _files(source.directory)}
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
        if plan.pop(devices.get(device, ""), None):
            devices.pop(device)
        if stat.S_ISBLK(mode) and not source.copy:
            devices[device] = str(path.absolute())
        else:
            suffix = path.suffix if stat.S_ISREG(mode) else ".img"
            devices[device] = f"{device}{suffix or '.img'}"
            plan[devices[device]] = path
    missing = {"boot", "root"} - devices.keys()
    if missing:
        raise UsageError(f"an image needs boot and root: give --{min(missing)} FILE")
    return plan, devices


def _fill(
    new: Path, plan: Mapping[str, Path], known: Mapping[str, str], report: Report
) -> dict[str, Any]:
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
            digest = _digest(file.fileno(), sizes[name], progress)
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o444)
        if known.get(name, digest) != digest:
            raise UsageError(
                f"{path}: its sha256 is not the one in its manifest: it was damaged on its way here"
            )
        sums[name] = {"size": sizes[name], "sha256": digest}
    return sums


def _known_sums(source: Source, said: dict[str, Any]) -> dict[str, str]:
    known = {name: each["sha256"] for name, each in said.get("files", {}).items()}
    for device in source.devices:
        known.pop(said.get("devices", {}).get(device, ""), None)
    return known


def _files(directory: Path) -> list[Path]:
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


def _digest(fd: int, size: int, progress: disk.Progress) -> str:
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


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1) + "\n"
