"""The library of images in a state directory: added, checked, switched, rolled back, removed.

Every change is one rename, so a reader sees the old state or the new one, and an interrupted one is
cleaned by the next. Two administrators at once wait for each other at ``images/.lock``.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pxed import disk, images
from pxed.config import CLASSES
from pxed.contents import (
    Report,
    Source,
    fill,
    known_sums,
    plan,
    quiet,
    read_manifest,
    sha256_of,
    sums_of,
    text,
    today,
)
from pxed.errors import HostError, UsageError
from pxed.former import Former
from pxed.images import HISTORY, STABLE, Image

RESERVED = (STABLE, "canary")
KEPT = ("kernel", "maintenance", "tree", "efi", "origin", "diskless_only")
"""Keys of a manifest that an added directory keeps: how else it boots, and where it is from."""
_STALE = 86400.0  # seconds after which a directory that somebody was making counts as left behind


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

    def verify(self, image: Image, report: Report = quiet) -> list[Finding]:
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
                    good = sha256_of(file.fileno(), size, progress) == wanted.sha256
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

    def add(self, source: Source, report: Report = quiet) -> Image:
        """Copy an image into the library; it appears when all of it is there and its sums agree.

        The first version of an image becomes its stable one; a later one waits for ``use``, also
        where no channel was ever set.
        """
        said = read_manifest(source.directory) if source.directory is not None else {}
        name = source.name or str(said.get("name", ""))
        version = source.version or str(said.get("version", "")) or time.strftime("%Y.%m.%d")
        class_name = source.class_name or str(said.get("class", "x86"))
        if class_name not in CLASSES:
            raise UsageError(f"class {class_name!r}: must be one of {', '.join(CLASSES)}")
        with self.making(name, version, report) as new:
            manifest: dict[str, Any] = {"name": name, "version": version, "class": class_name}
            manifest["released"] = source.released or str(said.get("released", "")) or today()
            chosen, devices = plan(source, said)
            manifest["devices"] = devices
            manifest |= {key: said[key] for key in KEPT if key in said}
            manifest["files"] = fill(new, chosen, known_sums(source, said), report)
            disk.write_whole(new / "manifest.json", text(manifest))
        return images.load(self.directory / name / version)

    @contextlib.contextmanager
    def making(self, name: str, version: str, report: Report = quiet) -> Iterator[Path]:
        """A directory to make an image in, with its manifest; it is in the library afterwards.

        Digests that the manifest does not have yet are added. Whole or not at all: nothing is left
        of it if the block raises. The first version of an image becomes its stable one.
        """
        images.word(name, "name for an image")
        images.word(version, "version")
        if version in RESERVED or version in images.channels(self.directory, name):
            raise UsageError(f"{version!r} is the name of a channel: choose another version")
        target = self.directory / name / version
        self._refuse_what_is_there(target)
        with self.scratch(name) as new:
            yield new
            images.load(new)
            manifest = json.loads((new / "manifest.json").read_text(encoding="utf-8"))
            if "files" not in manifest:
                self._record(new, manifest, report)
            first = self.keep_stable(name)
            with self._lock():
                self._refuse_what_is_there(target)
                new.rename(target)
                disk.sync_directory(target.parent)
                self._hand_over(target.parent)
        if first:
            self.use(f"{name}@{version}")

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A new directory beside the versions of an image: gone afterwards, unless it was renamed.

        Locked meanwhile; what a killed program left of one is removed by the next.
        """
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

    def keep_stable(self, name: str) -> bool:
        """Whether this image has no version yet; else what its name means stays what it means."""
        have = images.versions(self.directory, name)
        if have and STABLE not in images.channels(self.directory, name):
            self.use(f"{name}@{have[-1]}")
        return not have

    def seal(self, image: Image, report: Report = quiet) -> Image:
        """Record size and digest of each file of an image that was made without them."""
        manifest = read_manifest(image.directory)
        with _host_errors(image.directory):
            manifest.setdefault("released", today())
            self._record(image.directory, manifest, report)
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
            noted = self._note_former(image)
        shutil.rmtree(gone, ignore_errors=True)
        if not noted:  # the disk was full, and now has room
            with self._lock():
                self._note_former(image)
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

    def _record(self, directory: Path, manifest: dict[str, Any], report: Report) -> None:
        manifest["files"] = sums_of(directory, report)
        disk.write_whole(directory / "manifest.json", text(manifest))

    def _refuse_what_is_there(self, target: Path) -> None:
        if target.exists():
            raise UsageError(
                f"{target.parent.name}@{target.name} is there already, and an image never changes: "
                "choose another --version"
            )

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
            disk.write_whole(path, text(dict(past)))
            self._hand_over(path.parent)

    def _note_former(self, image: Image) -> bool:
        """For the seats; without it their layers of this version stay, and no more."""
        former = Former(self.directory)
        try:
            former.note(image)
            self._hand_over(former.path)
        except OSError:
            return False
        return True

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
