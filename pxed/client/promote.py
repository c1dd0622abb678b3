"""Makes an image of an installed system: this machine's own, a snapshot, or another root (M1).

Nothing that is mounted read-write is ever exported. A root that is in use is read once, through a
read-only view, into a compressed copy; a device that nobody has mounted is served where it is.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pxed import ext4
from pxed.client.archive import Cpio
from pxed.client.bootdisk import build_bootdisk, check_tools
from pxed.client.debian import CMDLINE, COMPRESSIONS, new_log
from pxed.client.debroot import put_files, run_alone
from pxed.client.imagedir import PRIVATE, Manifest, image_directory
from pxed.client.initramfs import script
from pxed.client.rootfile import KEEP_FREE, SMALLEST, below
from pxed.client.seat import add_adoption
from pxed.errors import HostError, UsageError

DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs")
"""Types of file systems that an installed system lies on."""
LEFT_OUT = ("/boot", "/tmp", "/var/tmp", "/media", "/mnt", "/.snapshots")  # noqa: S108
"""Directories that are empty on every seat."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is promoted, after every check: ``source``, and whether a copy is made of it.

    ``mounts``: further file systems of a running system that belong to it; ``used`` bytes in all.
    """

    source: Path
    copy: bool
    mounts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    used: int = 0


def look(
    source: Path,
    *,
    copy: bool | None = None,
    without: Sequence[str] = (),
    mountinfo: str | None = None,
) -> Origin:
    """Check what is to be promoted: ``/``, the directory of a root, or a block device.

    ``copy`` None: copy a directory, serve a device in place; ``without``: paths that seats do not
    get. UsageError, with what to do instead, for what would change under the clients.
    """
    from aoe_fast.store import mounted_read_write  # compiled: only where it is needed

    for path in without:
        if not path.startswith("/") or "\n" in path or ".." in path.split("/") or path == "/":
            raise UsageError(f"--exclude {path!r}: must be an absolute path below /")
    try:
        about = source.stat()
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None
    if stat.S_ISBLK(about.st_mode):
        if (where := mounted_read_write(about.st_rdev)) is not None:
            raise UsageError(
                f"{source}: is mounted read-write on {where}: it would change under the seats; "
                "leave --root out to make a copy, or give a read-only snapshot"
            )
        ext4.check_unmounted(source)
        return Origin(source.absolute(), bool(copy))
    if not stat.S_ISDIR(about.st_mode):
        raise UsageError(f"{source}: is no directory and no block device")
    source = source.resolve()
    mounts: list[str] = []
    skipped: list[str] = []
    if source == Path("/"):
        if mountinfo is None:
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="replace")
        mounts, skipped = own_mounts(mountinfo, without)
    used = sum(_used(Path(path)) for path in (str(source), *mounts))
    used -= sum(below(source / path.lstrip("/")) for path in without)
    return Origin(source, True, tuple(mounts), tuple(skipped), max(used, 0))


def own_mounts(mountinfo: str, without: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Which mounts below / belong to the installed system, and which local disks do not.

    proc_pid_mountinfo(5). Disks below /boot, /media, /mnt, /srv and the like are data or the
    firmware's; what one of ``without`` holds counts as neither.
    """
    mine: set[str] = set()
    other: set[str] = set()
    for line in mountinfo.splitlines():
        fields = line.split()
        if "-" not in fields[6:]:
            continue
        path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        kind = fields[fields.index("-", 6) + 1]
        if kind not in (*DISKS, "vfat") or path == "/" or not os.path.isdir(path):
            continue
        if any(path == each or path.startswith(f"{each}/") for each in without):
            continue
        systems = path == "/boot" or path.split("/")[1] in ("usr", "var", "opt", "home")
        (mine if systems and kind in DISKS else other).add(path)
    return sorted(mine), sorted(other)


def _used(path: Path) -> int:
    """Bytes that a file system, or else a directory, holds."""
    if not path.is_mount():
        return below(path)
    about = os.statvfs(path)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


def promote(
    destination: Path,
    origin: Origin,
    *,
    name: str,
    version: str,
    shelf: int = 16,
    state_dir: Path,
    exclude: Sequence[str] = (),
    kernel: str = "",
    cmdline: str = "",
    compression: str = "zstd",
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the image into the new directory ``destination``; there whole or not at all.

    ``exclude``: absolute paths that seats do not get (directories stay, empty); ``state_dir`` they
    never get. UsageError, HostError.
    """
    if compression not in COMPRESSIONS:
        raise UsageError(f"{compression!r}: compression is one of {', '.join(COMPRESSIONS)}")
    if kernel and not all(c.isalnum() or c in ".+-_~" for c in kernel):
        raise UsageError(f"{kernel!r} is no kernel release: ls /lib/modules")
    _check_host(origin, destination)
    words = f"{CMDLINE.format(shelf=shelf)} {cmdline}".strip()
    devices = {"boot": "boot.img", "root": "root.squashfs" if origin.copy else str(origin.source)}
    log = new_log("promote", f"{name}@{version}")
    progress(f"the log is {log}")
    with image_directory(destination, Manifest(name, version, "x86", words, devices)) as work:
        aside = work.parent
        files = aside / "files"
        put_files(files)
        empty = [str(state_dir), *LEFT_OUT, *_swap_files(), *exclude]
        (aside / "mounts").write_text("".join(f"{path}\n" for path in origin.mounts))
        (aside / "empty").write_text("".join(f"{path}\n" for path in dict.fromkeys(empty)))
        env = {
            "SOURCE": str(origin.source), "WORK": str(aside), "OUT": str(work),
            "FILES": str(files), "MOUNTS": str(aside / "mounts"), "EMPTY": str(aside / "empty"),
            "IMAGE": f"{name}@{version}", "COPY": "yes" if origin.copy else "", "KERNEL": kernel,
            "COMPRESSION": " ".join(COMPRESSIONS[compression]),
        }  # fmt: skip
        (aside / "promote.sh").write_bytes(script("promote.sh"))
        argv = ["sh", str(aside / "promote.sh")]
        watch = _watch(work, progress)
        run_alone(argv, log, env=env, progress=watch, timeout=6 * 3600, what="promoting")
        if origin.copy:
            _round_up(work / "root.squashfs")
            (work / "root.squashfs").chmod(PRIVATE)
        else:
            _adopt_at_first_start(work / "initrd", f"{name}@{version}")
        progress("making the boot disk")
        build_bootdisk(
            work / "boot.img", vmlinuz=work / "vmlinuz", initrd=work / "initrd", cmdline=words
        )
        shutil.copyfile(log, work / "build.log")


def _check_host(origin: Origin, destination: Path) -> None:
    """HostError if a program, the privilege or the space is missing: before anything is done."""
    if os.geteuid() != 0:
        raise HostError("a system is promoted as root: sudo pxed promote")
    check_tools()
    if origin.copy and shutil.which("mksquashfs") is None:
        raise HostError("mksquashfs is missing: apt install squashfs-tools")
    destination.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(destination.parent).free
    if free < origin.used * SMALLEST + KEEP_FREE:
        raise HostError(
            f"{destination.parent}: only {free >> 20} MiB are free, and the system has "
            f"{origin.used >> 20} MiB: free some space, --exclude some of it, or choose another "
            "state_dir"
        )


def _watch(work: Path, progress: Callable[[str], None]) -> Callable[[str], None]:
    """Of all that promote.sh says: its own steps, mksquashfs's share; and an eye on the disk."""

    def see(line: str) -> None:
        if line.startswith("pxed: "):
            progress(line.removeprefix("pxed: "))
        elif line.startswith("[") and line.endswith("%"):
            progress(line.rpartition(" ")[2])
        if shutil.disk_usage(work).free < KEEP_FREE:
            raise HostError(f"{work.parents[1]}: the disk is nearly full: nothing was changed")

    return see


def _swap_files() -> list[str]:
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return []
    return [line.split()[0] for line in lines if " file " in line]


def _round_up(path: Path) -> None:
    """A block device's size is whole sectors, and pages are easier on the page cache."""
    if spare := -path.stat().st_size % 4096:
        os.truncate(path, path.stat().st_size + spare)


def _adopt_at_first_start(initrd: Path, image: str) -> None:
    """Append to the initramfs what makes a seat of the untouched root, in the seat's own layer.

    The kernel unpacks one archive after the other (its Documentation, "initramfs buffer format").
    """
    archive = Cpio()
    add_adoption(archive, image)
    with initrd.open("ab") as out:
        out.write(b"\0" * (-out.tell() % 512))
        out.write(bytes(archive))
