"""Versions of images that were removed: what seats wrote with them, nothing can start again.

The names go to each seat behind the lines of its report device, as a policy goes to an installer
(docs/architecture.md), and the seat frees the layers (``reclaim`` in client/layers.sh).
"""

import contextlib
import json
from pathlib import Path

from pxed import disk, images
from pxed.errors import UsageError
from pxed.images import Image
from pxed.provision import ORDERS_BYTES

HISTORY = 1000
_HEAD = b"pxed-former 1\n"


class Former:
    """What was removed from the library in ``directory``, in its file ``.removed.json``.

    Only what was noted counts: a library that is not mounted, or is another one, takes no layer
    away.
    Reading never raises.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._told: tuple[object, bytes] = (None, b"")

    @property
    def path(self) -> Path:
        return self.directory / ".removed.json"

    def note(self, image: Image) -> None:
        """This version goes, or has gone. OSError."""
        past = [each for each in self._noted() if each[0] != str(image)]
        past.append((str(image), _root_sum(image)))
        disk.write_whole(self.path, json.dumps(past[-HISTORY:], indent=0) + "\n")

    def words(self) -> bytes:
        """The names for a seat, newest first, as many as there is room for; empty without any.

        Not those of a version that is there again, be it under another name.
        """
        seen = self._seen()
        if seen != self._told[0]:
            self._told = (seen, self._words())
        return self._told[1]

    def _words(self) -> bytes:
        there: set[str] = set()
        sums: set[str] = set()
        past = self._noted()
        for name in images.names(self.directory) if past else ():
            for version in images.versions(self.directory, name):
                there.add(f"{name}@{version}")
                with contextlib.suppress(UsageError):
                    sums.add(_root_sum(images.load(self.directory / name / version)))
        said = _HEAD
        for name, digest in reversed(past):
            if name not in there and (not digest or digest not in sums):
                line = f"{name}\n".encode()
                if len(said) + len(line) > ORDERS_BYTES:
                    break
                said += line
        return said if said != _HEAD else b""

    def _noted(self) -> list[tuple[str, str]]:
        try:
            past = json.loads(self.path.read_text(encoding="utf-8"))
            return [(_name(name), str(digest)) for name, digest in past]
        except (OSError, ValueError, TypeError, UsageError):
            return []

    def _seen(self) -> object:
        """Equal as long as nothing was added or removed: each is a rename in one of these."""
        try:
            file = self.path.stat()
            folders = [each for each in self.directory.iterdir() if each.is_dir()]
            times = sorted((each.name, each.stat().st_mtime_ns) for each in folders)
        except OSError:
            return None
        return file.st_ino, file.st_mtime_ns, times


def _name(spec: object) -> str:
    name, _, version = str(spec).partition("@")
    return f"{images.word(name, 'image')}@{images.word(version, 'version')}"


def _root_sum(image: Image) -> str:
    """The digest of its root; empty where none was recorded."""
    root = image.devices.get("root")
    if root is None or not root.is_relative_to(image.directory):
        return ""
    known = image.files.get(str(root.relative_to(image.directory)))
    return known.sha256 if known is not None else ""
