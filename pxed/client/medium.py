"""Live media: an ISO 9660 image or the tree of one, and what of it a seat needs.

An ISO is read by xorriso, which needs neither root nor a kernel that knows it.
"""

import fnmatch
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pxed.client.tree import Tree
from pxed.errors import HostError, UsageError

SQUASHES = (
    "LiveOS/squashfs.img", "live/filesystem.squashfs", "live/*.squashfs",
    "casper/filesystem.squashfs", "casper/*.squashfs",
)  # fmt: skip
"""Where live systems keep their root."""
_KERNELS = ("vmlinuz*", "linux", "bzimage*", "kernel")
_INITRDS = ("initrd*", "initramfs*", "initrd", "img*")
_PLACES = ("live", "casper", "boot/*", "boot", "images/pxeboot", "isolinux")
_QUOTED = re.compile(r"^'/(.*)'$")


class Medium:
    """Files by their path on the medium ``source``, an ISO image or a directory."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.is_iso = source.is_file()
        self._tree = None if self.is_iso else Tree(source)
        self.names = self._iso_names() if self.is_iso else self._tree_names()

    def one(self, *patterns: str) -> str:
        """The first path that one of the patterns means, or an empty text."""
        for pattern in patterns:
            for name in self.names:
                if fnmatch.fnmatchcase(name, pattern):
                    return name
        return ""

    def fetch(self, name: str, target: Path) -> None:
        """Copy one file of it. HostError."""
        if self._tree is not None:
            found = self._tree.file(name)
            if found is None:
                raise UsageError(f"{self.source}: {name} is no plain file of it")
            shutil.copyfile(found, target)
            return
        self._xorriso("-osirrox", "on", "-extract", f"/{name}", str(target))
        if target.is_symlink() or not target.is_file():
            target.unlink(missing_ok=True)
            raise UsageError(f"{self.source}: {name} is no plain file of it")
        target.chmod(0o644)

    def _tree_names(self) -> list[str]:
        paths = sorted(self.source.rglob("*"))
        return [str(p.relative_to(self.source)) for p in paths if not p.is_dir()]

    def _iso_names(self) -> list[str]:
        said = self._xorriso("-find", "/", "-type", "f")
        found = [match[1] for line in said.splitlines() if (match := _QUOTED.match(line))]
        return sorted(found)

    def _xorriso(self, *words: str) -> str:
        if shutil.which("xorriso") is None:
            raise HostError("xorriso is missing: apt install xorriso")
        argv = ["xorriso", "-no_rc", "-report_about", "WARNING", "-indev", str(self.source), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise HostError(f"{self.source}: cannot be read as an ISO image: {lines[-1][:200]}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Live:
    """Paths on a medium: the squashfs with the root, kernel and initramfs."""

    squash: str
    kernel: str
    initrd: str


def live_on(medium: Medium) -> Live:
    """What a live system's medium boots; UsageError for a medium that has none."""
    squash = medium.one(*SQUASHES)
    if not squash:
        raise UsageError(
            f"{medium.source}: no live system on it: none of {', '.join(SQUASHES[:2])} is there"
        )
    for place in (*_PLACES, "*"):
        kernel = medium.one(*(f"{place}/{name}" for name in _KERNELS))
        if not kernel or kernel.startswith("install"):
            continue
        folder = kernel.rpartition("/")[0]
        suffix = re.sub(r"^[a-z]+", "", kernel.rpartition("/")[2])
        initrd = medium.one(f"{folder}/initrd*{suffix}", *(f"{folder}/{name}" for name in _INITRDS))
        if initrd:
            return Live(squash, kernel, initrd)
    raise UsageError(f"{medium.source}: no kernel with an initramfs beside it is on it")


def is_live(source: Path) -> bool:
    """Whether a directory is the tree of a live medium."""
    tree = Tree(source)
    return not tree.is_system() and any(
        fnmatch.filter(tree.names(pattern.partition("/")[0]), pattern.partition("/")[2])
        for pattern in SQUASHES
    )


def release_of(vmlinuz: Path) -> str:
    """The release that a bzImage says it is (boot protocol, kernel_version); UsageError."""
    with vmlinuz.open("rb") as file:
        head = file.read(64 << 10)
    if head[0x202:0x206] == b"HdrS":
        (at,) = struct.unpack_from("<H", head, 0x20E)
        words = head[at + 0x200 : at + 0x200 + 200].split(b"\0")[0].decode(errors="replace").split()
        if words and re.fullmatch(r"[\w.+~-]+", words[0], re.ASCII):
            return words[0]
    raise UsageError(f"{vmlinuz.name}: is no bzImage: seats are x86-64")
