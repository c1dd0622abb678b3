"""Images: immutable, versioned sets of devices for one class of machines.

On disk ``images/NAME/VERSION/manifest.json`` beside the files that it names, and in
``images/NAME/channels.json`` the channels: names that point to versions (docs/architecture.md).
"""

import contextlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pxed.bootable import Kernel, efi_of, kernel_of, tree_of
from pxed.config import CLASSES
from pxed.errors import UsageError

SLOTS: Mapping[str, int] = {"boot": 0, "root": 1, "tfm": 2}
"""The slot of each device of an image; a client's own are ``CONFIG_SLOT`` and ``REPORT_SLOT``."""
CONFIG_SLOT = 3
REPORT_SLOT = 4

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


STABLE = "stable"
"""The channel that a name without a version means, where it is set."""
HISTORY = 10  # versions that a channel remembers for roll-back


PI_CARDS = (
    "Raspberry Pis are diskless only: write a Pi's own card with Raspberry Pi Imager, "
    "and have it boot that by the order local"
)


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file of an image must be."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Image:
    """One version of an image; ``devices`` maps boot, root and tfm to what is exported.

    ``kernel``: what iPXE loads by HTTP, ``maintenance`` the same of maintenance mode; ``tree``: the
    directory that a Raspberry Pi boots from.
    ``files``: size and digest of each file in the directory, by its path there; empty for an image
    that was made without. ``released``: a date, or empty. ``origin``: what it was made of, for
    people; ``diskless_only``: why it cannot be installed on a disk, where that is known; ``efi``:
    its kernel as an EFI program.
    """

    name: str
    version: str
    class_name: str
    directory: Path
    devices: Mapping[str, Path]
    kernel: Kernel | None = None
    tree: Path | None = None
    released: str = ""
    files: Mapping[str, Sum] = field(default_factory=dict)
    maintenance: Kernel | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    diskless_only: str = ""
    efi: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def why_diskless(self) -> str:
        """Why it cannot be installed on local disks; empty if it can."""
        if self.class_name == "rpi":
            return PI_CARDS
        if "tfm" in self.devices:
            return ""
        return self.diskless_only or "it was made without a maintenance disk"

    def check_installable(self) -> None:
        """UsageError, with the reason, if it cannot be installed on local disks."""
        if why := self.why_diskless:
            has = "" if "tfm" in self.devices else "has no tfm device to provision from and "
            raise UsageError(f"image {self} {has}cannot be installed: {why}")


def load(directory: Path) -> Image:
    """The image in ``directory``; UsageError if its manifest is missing, damaged or untrue."""
    manifest = directory / "manifest.json"
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{manifest}: missing: this is no image directory") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{manifest}: cannot be read as a manifest: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{manifest}: must be a JSON object")
    for key in ("name", "version", "class"):
        value = data.get(key)
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise UsageError(f"{manifest}: {key} = {value!r}: must be letters, digits and .-_+")
    if data["class"] not in CLASSES:
        raise UsageError(f"{manifest}: class = {data['class']!r}: must be one of {CLASSES}")
    named = data.get("devices")
    if not isinstance(named, dict) or not {"boot", "root"} <= named.keys() <= SLOTS.keys():
        raise UsageError(f"{manifest}: devices: must name boot and root, and may name tfm")
    devices = {key: _device(directory, manifest, key, value) for key, value in named.items()}
    released = data.get("released", "")
    if not isinstance(released, str) or (released and not _DATE.fullmatch(released)):
        raise UsageError(f"{manifest}: released = {released!r}: must be a date such as 2026-11-23")
    return Image(
        data["name"], data["version"], data["class"], directory, devices,
        kernel_of(manifest, data), tree_of(manifest, data),
        released, _sums(manifest, data.get("files", {})),
        kernel_of(manifest, data, "maintenance"),
        _origin(manifest, data.get("origin", {})), _line(manifest, data, "diskless_only"),
        efi_of(manifest, data),
    )  # fmt: skip


def served_in_place(directory: Path) -> frozenset[Path]:
    """The block devices that images below ``directory`` name; broken images name none."""
    found: set[Path] = set()
    for name in names(directory):
        for version in versions(directory, name):
            with contextlib.suppress(UsageError):
                image = load(directory / name / version)
                devices = image.devices.values()
                found |= {path for path in devices if not path.is_relative_to(directory)}
    return frozenset(found)


def _origin(manifest: Path, said: Any) -> dict[str, str]:
    if not isinstance(said, dict):
        raise UsageError(f"{manifest}: origin: must be an object")
    return {key: _line(manifest, said, key, "origin.") for key in said}


def _line(manifest: Path, data: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = data.get(key, "")
    if not isinstance(value, str) or not f"{key}{value}".isprintable() or len(value) > 500:
        raise UsageError(f"{manifest}: {prefix}{key} = {value!r}: must be one line of text")
    return value


def _sums(manifest: Path, named: Any) -> dict[str, Sum]:
    if not isinstance(named, dict):
        raise UsageError(f"{manifest}: files: must be an object")
    sums = {}
    for name, each in named.items():
        size = each.get("size") if isinstance(each, dict) else None
        digest = each.get("sha256") if isinstance(each, dict) else None
        good = isinstance(size, int) and isinstance(digest, str) and _SHA256.fullmatch(digest)
        if not good or name.startswith("/") or ".." in name.split("/"):
            raise UsageError(f"{manifest}: files.{name}: must have a size and a sha256")
        sums[name] = Sum(each["size"], each["sha256"])
    return sums


def _device(directory: Path, manifest: Path, key: str, value: object) -> Path:
    where = f"{manifest}: devices.{key} = {value!r}"
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: must be a file's name")
    path = directory / value
    if Path(value).is_absolute():
        # An installed system's own partitions (M1): nothing but a block device may lie outside.
        if not path.exists() or not stat.S_ISBLK(path.stat().st_mode):
            raise UsageError(f"{where}: only a block device may have an absolute path")
        return path
    if not path.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{where}: must lie in the image's own directory")
    if not path.is_file():
        raise UsageError(f"{where}: there is no such file: the image is incomplete, add it again")
    return path


def natural(version: str) -> list[tuple[int, int, str]]:
    """Sort key under which 2026.9 comes before 2026.11."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def word(text: str, what: str) -> str:
    """``text`` if it can be the name of an image, version or channel; else UsageError."""
    if not _WORD.fullmatch(text):
        raise UsageError(
            f"{text!r} is no {what}: it must be up to 64 letters, digits and ._+- "
            "and begin with a letter or digit"
        )
    return text


def channels(images_dir: Path, name: str) -> dict[str, list[str]]:
    """The channels of an image: for each its versions, the present one last; UsageError if damaged.

    A version that is no longer there counts as never having been.
    """
    path = images_dir / name / "channels.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}: mend or remove it") from None
    have = set(versions(images_dir, name))
    found: dict[str, list[str]] = {}
    for channel, past in data.items() if isinstance(data, dict) else [("", None)]:
        if not _WORD.fullmatch(channel) or not isinstance(past, list):
            raise UsageError(f"{path}: must map channels to lists of versions: mend or remove it")
        if still := [version for version in past if version in have]:
            found[channel] = still
    return found


def names(images_dir: Path) -> list[str]:
    """Images that have a complete version."""
    try:
        found = sorted(entry.name for entry in images_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in found if _WORD.fullmatch(name) and versions(images_dir, name)]


def versions(images_dir: Path, name: str) -> list[str]:
    """Complete versions of one image, oldest first."""
    directory = images_dir / name
    if not directory.is_dir():
        return []
    found = [p.name for p in directory.iterdir() if (p / "manifest.json").is_file()]
    return sorted((v for v in found if _WORD.fullmatch(v)), key=natural)


def find(images_dir: Path, spec: str | None, class_name: str) -> Image:
    """The image that ``spec`` means: ``NAME@VERSION``, ``NAME@CHANNEL`` or ``NAME``.

    A name alone is its channel ``stable``, or else its newest version. Without a spec the only
    image of the class is taken. UsageError names what is there instead.
    """
    if spec is None:
        spec = _only(images_dir, class_name)
    name, at, version = spec.partition("@")
    if not _WORD.fullmatch(name) or (at and not _WORD.fullmatch(version)):
        raise UsageError(f"{spec!r} is no image: write NAME, NAME@VERSION or NAME@CHANNEL")
    have = versions(images_dir, name)
    pointers = channels(images_dir, name)
    wanted = version or STABLE
    chosen = wanted if wanted in have else next(iter(pointers.get(wanted, [])[-1:]), "")
    if not chosen and not version and have:
        chosen = have[-1]
    if not chosen:
        all_names = names(images_dir)
        there = ", ".join(f"{n}@{v}" for n in all_names for v in versions(images_dir, n)) or "none"
        raise UsageError(
            f"there is no image {spec} in {images_dir} (there: {there}): make it with "
            f"pxed image build minimal --name {name} or pxed image add, or choose another"
        )
    image = load(images_dir / name / chosen)
    if class_name and image.class_name != class_name:
        raise UsageError(f"image {image} is for class {image.class_name}, not {class_name}")
    return image


def _only(images_dir: Path, class_name: str) -> str:
    fitting = [n for n in names(images_dir) if find(images_dir, n, "").class_name == class_name]
    if len(fitting) != 1:
        have = f"there are {', '.join(fitting)}" if fitting else "there is none"
        todo = f'set image = "NAME" under [class.{class_name}]'
        if not fitting:
            make = {"rpi": "raspios-like"}.get(class_name, "minimal")
            todo = f"make one: pxed image build {make}"
        raise UsageError(
            f"{images_dir}: no image is chosen for class {class_name} and {have}: {todo}"
        )
    return fitting[0]
