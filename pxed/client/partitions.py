"""The partitions of a raw disk, and the mounts in which they are looked at.

Mounts are made in a namespace that is this process's own: nobody else sees them, and however it
ends they end with it, loop devices too. All is mounted read-only, without a look at journals.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pxed import ext4
from pxed.client.tree import Tree
from pxed.errors import HostError, PxedError, UsageError

KEEPABLE = ("ext2", "ext3", "ext4", "squashfs", "erofs")
"""Types of file systems that a seat mounts as they are."""
_EXT = ("ext2", "ext3", "ext4")
_OPTIONS = {"ext2": "noload", "ext3": "noload", "ext4": "noload", "xfs": "nouuid"}
_TYPES = (*KEEPABLE, "xfs", "btrfs", "f2fs", "jfs", "vfat")
_CLOSED = {
    "crypto_LUKS": "is encrypted (LUKS): import the disk of a machine that is not",
    "BitLocker": "is encrypted (BitLocker)",
    "LVM2_member": "is part of LVM: mount its root, with /boot and all else where they belong, "
    "on a machine that has LVM, and import that directory or a copy of it",
    "linux_raid_member": "is part of a RAID: import the assembled device, or a copy of it",
    "zfs_member": "is ZFS: copy its files to a directory, and import that",
}
_BOOT = (  # the EFI system partition, and the one for more kernels than fit there
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef", "bc13c2ff-59e6-4262-a352-b275fd6f7172", "ea",
)  # fmt: skip
_SUBVOLUMES = ("", "@", "root", "@rootfs")  # where btrfs roots lie, by distribution
_LARGEST_FAT = 2 << 30
OWN = ("/usr", "/var", "/opt", "/home", "/srv")
"""Directories that belong to the system where they are partitions of its disk."""
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True)
class Partition:
    """Bytes ``start`` to ``start + size`` of a disk; ``number`` 0: all of it, there is no table.

    ``kind`` is the table's type, ``fs`` what is in it by libblkid's name, or empty.
    """

    number: int
    start: int
    size: int
    kind: str = ""
    fs: str = ""
    names: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"partition {self.number}" if self.number else "the disk"

    @property
    def is_for_kernels(self) -> bool:
        """Whether its type says so (the Boot Loader Specification)."""
        return self.kind.lower() in _BOOT


def partitions(disk: Path) -> list[Partition]:
    """The partitions of ``disk``, or the one file system that it is; UsageError for neither."""
    for program, package in (("sfdisk", "fdisk"), ("blkid", "util-linux")):
        if shutil.which(program) is None:
            raise HostError(f"{program} is missing: apt install {package}")
    size = _length(disk)
    done = subprocess.run(
        ["sfdisk", "--json", str(disk)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    whole = _probe(disk, Partition(0, 0, size))
    if done.returncode or (whole.fs and "partitiontable" not in done.stdout):
        if whole.fs:
            return [whole]
        raise UsageError(f"{disk.name}: has no partition table (GPT or MBR) and no file system")
    table = json.loads(done.stdout)["partitiontable"]
    sector = int(table.get("sectorsize", 512))
    found = []
    for entry in table.get("partitions", []):
        number = re.search(r"(\d+)$", entry["node"])
        part = Partition(
            int(number[1]) if number else 0, entry["start"] * sector, entry["size"] * sector,
            str(entry.get("type", "")),
        )  # fmt: skip
        if part.kind.lower() in ("5", "f", "85"):  # the frame of logical partitions
            continue
        if part.kind.lower() == "ee":  # only what protects a GPT, and no GPT behind it
            raise UsageError(f"{disk.name}: {_no_gpt(disk)}")
        if part.start + part.size > size:
            raise UsageError(f"{disk.name}: {part} ends behind the disk: the file is cut off")
        names = {f"PARTUUID={entry['uuid']}".lower()} if "uuid" in entry else set()
        names |= {f"PARTLABEL={entry['name']}".lower()} if "name" in entry else set()
        found.append(_probe(disk, part, frozenset(names)))
    if not found and whole.fs:  # FAT begins like a table
        return [whole]
    if not found:
        raise UsageError(f"{disk.name}: its partition table is empty")
    return found


def _no_gpt(disk: Path) -> str:
    """Why there is none behind the MBR that protects one."""
    with disk.open("rb") as file:
        if os.pread(file.fileno(), 8, 4096) == b"EFI PART":
            return (
                "is of a disk with sectors of 4096 bytes, which is not read: import its root "
                "partition alone, or a directory with its files"
            )
    return "its GPT is damaged, or the file is cut off"


def closed(part: Partition) -> str:
    """Why nobody can look into this partition; empty if it can be tried."""
    return _CLOSED.get(part.fs, "")


def check_closed(disk: Path, part: Partition, name: str) -> None:
    """UsageError for an ext file system whose journal was not replayed, or with known errors.

    It is read, here and by seats, without its journal: what was written last would be missing.
    """
    if part.fs in _EXT and not ext4.look(disk, part.start).clean:
        raise UsageError(f"{name}: {part} ({part.fs}) {ext4.NOT_IN_ORDER}")


def _length(disk: Path) -> int:
    with disk.open("rb") as file:
        return os.lseek(file.fileno(), 0, os.SEEK_END)


def _probe(disk: Path, part: Partition, names: frozenset[str] = frozenset()) -> Partition:
    """The same with what libblkid finds in it."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "export", "-O", str(part.start), "-S", str(part.size), str(disk)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    more = {f"{key}={said[key]}".lower() for key in ("UUID", "LABEL") if key in said}
    fs = said.get("TYPE", "")
    return Partition(part.number, part.start, part.size, part.kind, fs, names | more)


def private_mounts() -> None:
    """From here on what this process mounts is its own and its children's. HostError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise HostError(f"no mount namespace: {os.strerror(ctypes.get_errno())}: run this as root")


@contextlib.contextmanager
def mounted(disk: Path, part: Partition, where: Path, subvolume: str = "") -> Iterator[Tree]:
    """The file system of a partition at the new directory ``where``, read-only. HostError."""
    if part.fs in _EXT and ext4.look(disk, part.start).size > part.size:
        raise UsageError(f"{part} ({part.fs}) is larger than its place: the file is cut off")
    where.mkdir(parents=True, exist_ok=True)
    if part.fs == "vfat":
        _copy_fat(disk, part, where)
        yield Tree(where)
        return
    options = ["ro", "nodev", "nosuid", "noexec", *filter(None, [_OPTIONS.get(part.fs, "")])]
    if subvolume:
        options.append(subvolume if subvolume.startswith("subvolid=") else f"subvol={subvolume}")
    # Through a loop device that is read-only, an xfs cannot replay its log: it says so.
    if part.number or part.fs == "xfs" or not disk.is_block_device():
        options += ["loop", f"offset={part.start}", f"sizelimit={part.size}"]
    done = _mount(disk, part, options, where)
    if done.returncode and part.fs == "xfs" and _is_unreplayed(disk, part, options, where):
        raise UsageError(
            f"{disk.name}: {part} ({part.fs}) was not unmounted in order: start that machine and "
            "shut it down, or mount a copy once"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        # Its own words for a machine without loop devices; else /dev/loop0 is in nearly every line.
        no_loop = "loop device" in done.stderr
        hint = "modprobe loop" if no_loop else "is it damaged? fsck it in a copy"
        if "unknown filesystem type" in done.stderr:
            hint = f"modprobe {part.fs}, or import a directory with a copy of its files"
        why = lines[0].strip().removeprefix(f"mount: {where}: ").rstrip(".")
        raise HostError(f"{part} ({part.fs}) cannot be mounted: {why}: {hint}")
    try:
        yield Tree(where)
    finally:
        subprocess.run(["umount", "--lazy", str(where)], capture_output=True, check=False)


def _is_unreplayed(disk: Path, part: Partition, options: Sequence[str], where: Path) -> bool:
    """Whether nothing but its log keeps an xfs from being mounted."""
    if _mount(disk, part, [*options, "norecovery"], where).returncode:
        return False
    subprocess.run(["umount", "--lazy", str(where)], capture_output=True, check=False)
    return True


def _mount(
    disk: Path, part: Partition, options: Sequence[str], where: Path
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["mount", "-t", part.fs, "-o", ",".join(options), str(disk), str(where)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip


def _copy_fat(disk: Path, part: Partition, where: Path) -> None:
    """The files of a FAT partition, copied: not every server's kernel knows FAT."""
    if part.size > _LARGEST_FAT:
        raise UsageError(f"{part} ({part.fs}) is larger than {_LARGEST_FAT >> 20} MiB")
    done = subprocess.run(
        ["mcopy", "-s", "-n", "-Q", "-i", f"{disk}@@{part.start}", "::/", str(where)],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise HostError(f"{part} ({part.fs}) cannot be read: {lines[-1]}")


@contextlib.contextmanager
def root_of(
    disk: Path, parts: Sequence[Partition], where: Path, number: int | None = None
) -> Iterator[tuple[Partition, Tree, str]]:
    """The one partition that holds a system, mounted, and its btrfs subvolume; or ``number``.

    UsageError that says what there is instead.
    """
    asked = [part for part in parts if number is None or part.number == number]
    if not asked:
        there = ", ".join(str(part.number) for part in parts)
        raise UsageError(f"{disk.name}: has no partition {number}; there are {there}")
    found: list[tuple[Partition, str]] = []
    closed_here: list[PxedError] = []
    for part in asked:
        if part.fs in _TYPES and part.fs != "vfat":
            for subvolume in _SUBVOLUMES if part.fs == "btrfs" else ("",):
                try:
                    with mounted(disk, part, where, subvolume) as tree:
                        good = tree.is_system()
                except PxedError as error:
                    closed_here += [] if subvolume else [error]
                    continue
                if good:
                    found.append((part, subvolume))
                    break
    if len(found) > 1:
        several = " and ".join(str(part.number) for part, _ in found)
        raise UsageError(
            f"{disk.name}: partitions {several} hold a system each: choose one with --root-part"
        )
    if not found and closed_here:  # what else there is does not matter where one was found
        raise closed_here[0]
    if not found:
        raise UsageError(f"{disk.name}: {_nothing(asked)}")
    part, subvolume = found[0]
    with mounted(disk, part, where, subvolume) as tree:
        yield part, tree, subvolume


def _nothing(parts: Sequence[Partition]) -> str:
    for part in parts:
        if reason := closed(part):
            return f"{part} {reason}"
    what = ", ".join(f"{part.number}: {part.fs or 'nothing known'}" for part in parts)
    if len(parts) == 1:
        return f"{parts[0]} holds no Linux system ({parts[0].fs or 'no file system that is known'})"
    return f"no partition holds a Linux system ({what})"


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the system's fstab that a partition of its disk stands for."""

    path: str
    part: Partition
    subvolume: str = ""


def own_mounts(
    fstab: str, parts: Sequence[Partition], root: tuple[Partition, str]
) -> tuple[list[Mount], list[str]]:
    """What else fstab(5) mounts from this disk; and those of OWN that are not on it.

    ``root``: partition and subvolume of the root, which is no further one. /boot and the EFI
    partition are among the first.
    """
    mine, elsewhere = [], []
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        spec, path, kind = fields[0].replace('"', ""), fields[1].rstrip("/"), fields[2]
        options = fields[3].split(",") if len(fields) > 3 else []
        wanted = path in ("/boot", "/boot/efi", "/efi") or any(
            path == own or path.startswith(f"{own}/") for own in OWN
        )
        if not wanted or kind in ("swap", "tmpfs", "nfs", "nfs4", "cifs", "none"):
            continue
        subvolume = next((o for o in options if o.startswith("subvolid=")), "")
        subvolume = next(
            (o.partition("=")[2].lstrip("/") for o in options if o[:7] == "subvol="), subvolume
        )
        part = next((part for part in parts if _meant(spec, part)), None)
        if part is None or part.fs not in _TYPES:
            if not path.startswith(("/boot", "/efi")):
                elsewhere.append(path)
        elif (part, subvolume) != root:
            mine.append(Mount(path, part, subvolume))
    return sorted(mine, key=lambda each: each.path), sorted(elsewhere)


def _meant(spec: str, part: Partition) -> bool:
    if re.sub(r"^/dev/disk/by-((?:part)?(?:uuid|label))/", r"\1=", spec.lower()) in part.names:
        return True
    by_number = re.fullmatch(r"/dev/(?:[shv]da|xvda|nvme0n1p|mmcblk0p)(\d+)", spec)
    return bool(by_number) and int(by_number[1]) == part.number if by_number else False
