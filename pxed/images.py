"""Images: immutable, versioned sets of devices for one class of machines.

On disk ``images/NAME/VERSION/manifest.json`` beside the files that it names (docs/architecture.md).
"""

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pxed.bootable import Kernel, kernel_of, tree_of
from pxed.config import CLASSES
from pxed.errors import UsageError

SLOTS: Mapping[str, int] = {"boot": 0, "root": 1, "tfm": 2}
"""The slot of each device of an image; a client's own are ``CONFIG_SLOT`` and ``REPORT_SLOT``."""
CONFIG_SLOT = 3
REPORT_SLOT = 4

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Image:
    """One version of an image; ``devices`` maps boot, root and tfm to what is exported.

    ``kernel``: what iPXE loads by HTTP; ``tree``: the directory that a Raspberry Pi boots from.
    """

    name: str
    version: str
    class_name: str
    directory: Path
    devices: Mapping[str, Path]
    kernel: Kernel | None = None
    tree: Path | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


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
    kernel, tree = kernel_of(manifest, data), tree_of(manifest, data)
    return Image(data["name"], data["version"], data["class"], directory, devices, kernel, tree)


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


def find(images_dir: Path, spec: str | None, class_name: str) -> Image:
    """The image that ``spec`` (``NAME`` or ``NAME@VERSION``) means; without a version the newest.

    Without a spec the only image of the class is taken. UsageError names what is there instead.
    """
    if spec is None:
        names = sorted(p.name for p in images_dir.iterdir()) if images_dir.is_dir() else []
        found = [name for name in names if _versions(images_dir / name)]
        fitting = [n for n in found if find(images_dir, n, "").class_name == class_name]
        if len(fitting) != 1:
            have = f"there are {', '.join(fitting)}" if fitting else "there is none"
            raise UsageError(
                f"{images_dir}: no image is chosen for class {class_name} and {have}: "
                f'set image = "NAME" under [class.{class_name}], '
                "or make one: pxed image build minimal"
            )
        spec = fitting[0]
    name, _, version = spec.partition("@")
    if not _WORD.fullmatch(name) or (version and not _WORD.fullmatch(version)):
        raise UsageError(f"{spec!r} is no image: write NAME or NAME@VERSION")
    have_versions = _versions(images_dir / name)
    if not have_versions or (version and version not in have_versions):
        names = sorted(p.name for p in images_dir.iterdir()) if images_dir.is_dir() else []
        have = ", ".join(f"{n}@{v}" for n in names for v in _versions(images_dir / n)) or "none"
        raise UsageError(
            f"there is no image {spec} in {images_dir} (there: {have}): "
            f"make it with pxed image build minimal --name {name}, or choose another"
        )
    image = load(images_dir / name / (version or have_versions[-1]))
    if class_name and image.class_name != class_name:
        raise UsageError(f"image {image} is for class {image.class_name}, not {class_name}")
    return image


def _versions(directory: Path) -> list[str]:
    """Complete versions of one image, oldest first."""
    if not directory.is_dir():
        return []
    found = [p.name for p in directory.iterdir() if (p / "manifest.json").is_file()]
    return sorted((v for v in found if _WORD.fullmatch(v)), key=natural)
