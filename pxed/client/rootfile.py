"""The root of an imported image as one file: copied as it is, or packed."""

import contextlib
import itertools
import os
import re
import shutil
from pathlib import Path

from pxed import disk
from pxed.client.debian import COMPRESSIONS
from pxed.client.debroot import run_alone
from pxed.client.partitions import Partition
from pxed.client.wish import Progress, Wish
from pxed.errors import HostError

EMPTY = ("boot", "dev", "proc", "sys", "run", "tmp", "var/tmp", "media", "mnt", "lost+found",
         ".snapshots")  # fmt: skip
"""Directories of which a packed root has nothing but themselves."""
LEFT_OUT = ("swapfile", "swap.img", "swap/swapfile", ".dockerenv")
_KEYS = "etc/ssh/ssh_host_*_key*"
SMALLEST = 0.25  # of what a system has on its disk: none is packed to less
KEEP_FREE = 256 << 20  # of the library's disk: for what is made beside the root, and for the seats


def size_of(tree: Path, keep: tuple[Path, Partition] | None) -> int:
    """Bytes that a root will take: as it is at ``keep``, or ``tree`` packed."""
    if keep is None:
        return int(below(tree) * SMALLEST)
    path, part = keep
    with path.open("rb") as file:
        return sum(e - b for b, e in disk.extents(file.fileno(), part.size, part.start))


def check_room(new: Path, size: int) -> None:
    """HostError if there is no room in ``new`` for a root of ``size`` bytes and what it needs."""
    free = shutil.disk_usage(new).free
    if free < size + KEEP_FREE:
        raise HostError(
            f"{new.parent}: only {free >> 20} MiB are free, and {size + KEEP_FREE >> 20} MiB are "
            "needed: free some space, or choose another state_dir"
        )


def below(path: Path) -> int:
    """Bytes that the files below take on their disks."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def copy_root(raw: Path, part: Partition, target: Path, progress: Progress) -> None:
    """A partition of a disk as a file, with its holes, in whole pages. HostError."""
    done = shown = 0

    def count(step: int) -> None:
        nonlocal done, shown
        done += step
        if (percent := 100 * done // max(part.size, 1)) != shown:
            shown = percent
            progress(f"{percent} %")

    try:
        with raw.open("rb") as reader, target.open("xb") as writer:
            disk.copy_data(reader.fileno(), writer.fileno(), part.size, count, part.start)
            os.ftruncate(writer.fileno(), part.size + -part.size % 4096)
    except OSError as error:
        raise HostError(f"{target.parent.parent}: {error.strerror}: nothing was changed") from None


def pack_root(root: Path, target: Path, wish: Wish, log: Path, progress: Progress) -> None:
    """The tree as a squashfs or an erofs, without what seats have of their own. HostError."""
    gone = [f"{path}/*" for path in EMPTY] + [*LEFT_OUT, _KEYS]
    gone += [path.strip("/") for path in wish.exclude]
    if wish.root_format == "erofs":
        # An expression for each, on paths without a slash in front.
        words = [f"--exclude-regex=^{_expression(path)}$" for path in gone]
        argv = ["mkfs.erofs", "-zlz4hc", *words, str(target), str(root)]
        package = "erofs-utils"
    else:
        words = [each for path in gone for each in _wildcards(path)]
        argv = ["mksquashfs", str(root), str(target), "-b", "128K", "-noappend", "-progress",
                *COMPRESSIONS[wish.compression], "-wildcards", "-e", *words]  # fmt: skip
        package = "squashfs-tools"
    if shutil.which(argv[0]) is None:
        raise HostError(f"{argv[0]} is missing: apt install {package}")

    lists = 0

    def see(line: str) -> None:
        nonlocal lists
        lists += "system.posix_acl_" in line  # mksquashfs: "Unrecognised xattr prefix ..."
        if line.startswith("[") and line.endswith("%"):
            progress(line.rpartition(" ")[2].removesuffix("%") + " %")
        if shutil.disk_usage(target.parent).free < KEEP_FREE // 4:
            raise HostError(f"{target.parents[1]}: the disk is nearly full: nothing was changed")

    run_alone(argv, log, progress=see, timeout=6 * 3600, what="packing the root")
    if lists:
        progress(f"{lists} access lists (ACL) are left out, a squashfs has none: --format erofs")
    if spare := -target.stat().st_size % 4096:
        os.truncate(target, target.stat().st_size + spare)


def _wildcards(path: str) -> list[str]:
    """``path`` for mksquashfs: only * is more than itself, and stands for names with a dot too.

    Its fnmatch(3) is told FNM_PERIOD, by which no wildcard takes the dot that begins a name.
    """
    plain = re.sub(r"([\[\]?\\()])", r"\\\1", path)
    parts = [(part, f".{part}") if part.startswith("*") else (part,) for part in plain.split("/")]
    return ["/".join(each) for each in itertools.product(*parts)]


def _expression(path: str) -> str:
    return re.sub(r"([.\[\]()+?{}|^$\\])", r"\\\1", path).replace("*", "[^/]*")
