"""Images as the JSON of the control interface, and back."""

import contextlib
import os
from pathlib import Path
from typing import Any

from pxed import pi
from pxed.body import Body
from pxed.contents import Source
from pxed.errors import UsageError
from pxed.images import Image
from pxed.library import Finding, Library

Json = dict[str, Any]


def describe(library: Library, image: Image, used: str = "") -> Json:
    """An image as JSON; ``used``: who needs it."""
    return {
        "name": image.name,
        "version": image.version,
        "class": image.class_name,
        "released": image.released,
        "devices": {device: str(path) for device, path in image.devices.items()},
        "bytes": sum(each.size for each in image.files.values()),
        "channels": library.channels_of(image),
        "used": used,
    }


DISK_BESIDE = 96 << 20


def detail(image: Image) -> Json:
    """What ``show`` adds: its origin, whether it can be installed, what a Pi lacks, digests."""
    lacks = pi.lacks(image.tree) if image.tree is not None else []
    return {
        "origin": dict(image.origin),
        "diskless_only": image.why_diskless,
        "disk_bytes": disk_needed(image),
        "lacks": [f"{lack}: {lack.todo}" for lack in lacks],
        "files": {n: {"size": s.size, "sha256": s.sha256} for n, s in image.files.items()},
    }


def disk_needed(image: Image) -> int:
    """About how large a disk must be for it, in bytes; 0 where it cannot be installed.

    Two systems, each a root as it is with its kernel and initramfs, and what
    client/installer/install.sh needs besides.
    """
    if image.why_diskless:
        return 0
    paths = [image.devices["root"]]
    paths += image.kernel.files.values() if image.kernel is not None else ()
    system = 0
    for path in paths:
        # A block device that the server may not look into counts for nothing.
        with contextlib.suppress(OSError), path.open("rb") as file:
            system += file.seek(0, os.SEEK_END)
    return 2 * system + DISK_BESIDE


def source_of(data: Json) -> Source:
    """What to add, from the body of a request; UsageError for what is not meant."""
    body = Body(data, "directory", "devices", "name", "version", "class", "released", "copy")
    devices = data.get("devices", {})
    if not isinstance(devices, dict):
        raise UsageError("devices: must be an object of device names and paths")
    paths = Body(devices, "boot", "root", "tfm")
    found = {device: path for device in devices if (path := paths.path(device)) is not None}
    directory = body.path("directory")
    if directory is None and not found:
        raise UsageError("nothing to add: give a directory with a manifest, or devices")
    return Source(
        directory, found, body.text("name"), body.text("version"), body.text("class"),
        body.text("released"), body.switch("copy"),
    )  # fmt: skip


def finding_line(finding: Finding) -> Json:
    return {"file": finding.file, "good": finding.good, "text": finding.text}


def absolute(path: str) -> str:
    """A path as the server will understand it: from the root, not from here."""
    return str(Path(path).absolute())
