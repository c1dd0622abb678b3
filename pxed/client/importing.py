"""``pxed image import``: a disk image or the tree of a root becomes an image of the library.

The root stays as it is where a seat can mount it so; kernel, initramfs, boot disk and maintenance
disk are made beside it (pxed.client.seat). Nothing of it runs on this machine.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pxed.client.bootdisk import build_bootdisk, check_tools
from pxed.client.diskfile import check_idle, format_of, to_raw
from pxed.client.imagedir import PRIVATE, TFM, Manifest
from pxed.client.live import FoundLive, build_live, find_live, root_in
from pxed.client.medium import Medium, is_live
from pxed.client.partitions import (
    KEEPABLE,
    Mount,
    Partition,
    check_closed,
    mounted,
    own_mounts,
    partitions,
    private_mounts,
    root_of,
)
from pxed.client.rootfile import check_room, copy_root, pack_root, size_of
from pxed.client.seat import seat_initramfs, stage_kernel
from pxed.client.tfm import System, build_tfm, maintenance_words
from pxed.client.tree import NO_VMLINUZ, Tree, check_root, kernel_in, plain
from pxed.client.wish import Progress, Wish
from pxed.contents import Report
from pxed.errors import HostError, UsageError
from pxed.images import Image
from pxed.library import Library

CMDLINE = (
    "aoe.aoe_deadsecs=0 pxed.shelf={shelf} console=tty0 console=ttyS0 quiet loglevel=3 "
    "random.trust_cpu=on cryptomgr.notests"
)


@dataclass(frozen=True, slots=True)
class Found:
    """A system that was found, mounted, and what is to become of it."""

    tree: Tree
    title: str
    release: str
    vmlinuz: Path
    origin: dict[str, str]
    keep: tuple[Path, Partition] | None = None  # the raw disk, and where on it the root lies
    notes: tuple[str, ...] = field(default=())

    @property
    def lines(self) -> list[str]:
        """For people."""
        how = "stays as it is" if self.keep else "is packed"
        return [f"{self.title}, kernel {self.release}; the root ({self.origin['root']}) {how}",
                *self.notes]  # fmt: skip


def check_host(source: Path) -> None:
    """HostError if a program or the privilege is missing; UsageError if there is no such source."""
    if not str(source).isprintable():
        raise UsageError(f"{plain(str(source))}: call it by a name that is plain text (UTF-8)")
    if not source.exists():
        raise UsageError(f"{source}: No such file or directory")
    if not source.is_dir() and not source.is_file() and not source.is_block_device():
        raise UsageError(f"{source}: is no directory, no file and no block device")
    if os.geteuid() != 0:
        raise HostError("a system is imported as root: sudo pxed image import")
    check_tools()
    if shutil.which("mksquashfs") is None:
        raise HostError("mksquashfs is missing: apt install squashfs-tools")


@contextlib.contextmanager
def found_in(
    source: Path, wish: Wish, work: Path, progress: Progress
) -> Iterator[Found | FoundLive]:
    """The system in ``source``; what is mounted for it below ``work`` is gone after the block.

    UsageError, one line, for what cannot be a seat's.
    """
    wish.check()
    here = source.resolve()
    if source.is_dir() and here != Path("/") and work.resolve().is_relative_to(here):
        raise UsageError(f"{source}: has the library of images in it: choose another state_dir")
    if source.is_dir() and not is_live(source):
        with _directory(source.resolve(), wish) as found:
            yield found
        return
    if source.is_dir():
        with _live(source, wish, work) as live:
            yield live
        return
    if source.is_file() and source.stat().st_size == 0:
        raise UsageError(f"{source}: is empty")
    check_idle(source)
    kind = format_of(source)
    if kind == "iso":
        with _live(source, wish, work) as live:
            yield live
        return
    private_mounts()
    raw = source.absolute()
    if kind != "raw":
        raw = work / "raw" / source.name
        raw.parent.mkdir()
        progress(f"unpacking {source.name} ({kind})")
        to_raw(source, kind, raw, progress)
    with _disk(source, raw, kind, wish, work) as found:
        yield found


@contextlib.contextmanager
def _directory(source: Path, wish: Wish) -> Iterator[Found]:
    if source == Path("/"):
        raise UsageError("/ is the system that runs here: sudo pxed promote makes an image of it")
    if wish.root_part is not None or wish.boot_part is not None:
        raise UsageError(f"{source}: is a directory: it has no partitions")
    if wish.root_format == "keep":
        raise UsageError(f"{source}: is a directory: --format squashfs or erofs")
    tree = Tree(source)
    if not tree.is_system():
        raise UsageError(f"{source}: is no root of a system: it has no etc/os-release")
    check_root(tree, str(source))
    release, vmlinuz = kernel_in([tree], str(source), wish.kernel)
    origin = {"source": source.name, "kind": "directory", "root": wish.packed}
    yield Found(tree, tree.title(), release, vmlinuz, origin)


@contextlib.contextmanager
def _live(source: Path, wish: Wish, work: Path) -> Iterator[Found | FoundLive]:
    if wish.root_part is not None or wish.boot_part is not None or wish.exclude:
        raise UsageError(f"{source}: is a live system: it is taken whole, without partitions")
    private_mounts()
    live = find_live(Medium(source.absolute()), work)
    kind = live.initramfs.kind
    if wish.initramfs == "its" and not live.initramfs.loads_aoe:
        why = "cannot do AoE by itself" if kind else "is of no kind that is known"
        raise UsageError(f"{source}: its initramfs {why}: leave --initramfs its out")
    if wish.initramfs != "ours" and kind:
        if wish.root_format != "auto":
            raise UsageError(f"{source}: --format is for --initramfs ours")
        yield live
        return
    with root_in(live) as (file, whole, tree):
        check_root(tree, source.name)
        release, vmlinuz = live.release, work / "vmlinuz"
        try:
            release, vmlinuz = kernel_in([tree], source.name, wish.kernel or release)
        except UsageError as error:
            if wish.kernel or not error.args[0].endswith(NO_VMLINUZ):
                raise  # else the medium's own is the one
        keep = wish.root_format in ("auto", "keep") and whole.fs in KEEPABLE
        how = "" if keep else f", as {wish.packed}"
        origin = live.origin | {"root": f"{live.live.squash}, {whole.fs}{how}"}
        place = (file, whole) if keep else None
        yield Found(tree, tree.title(), release, vmlinuz, origin, place)


@contextlib.contextmanager
def _disk(source: Path, raw: Path, kind: str, wish: Wish, work: Path) -> Iterator[Found]:
    parts = partitions(raw)
    name = source.name
    with contextlib.ExitStack() as stack:
        part, tree, subvolume = stack.enter_context(
            root_of(raw, parts, work / "root", wish.root_part)
        )
        check_closed(raw, part, name)
        mounts, elsewhere = own_mounts(tree.text("etc/fstab"), parts, (part, subvolume))
        boot = [each for each in mounts if each.path.startswith(("/boot", "/efi"))]
        mounts = [each for each in mounts if each not in boot]
        for each in mounts:  # with all of them it is a system: /usr may be one
            check_closed(raw, each.part, name)
            _further(stack, raw, each, tree)
        if "/usr" in elsewhere:
            raise UsageError(f"{name}: its /usr is on another disk: import a directory with both")
        check_root(tree, name)
        release, vmlinuz = _kernel(stack, raw, parts, part, boot, tree, wish, work)
        if wish.root_format == "keep" and (mounts or part.fs not in KEEPABLE):
            why = f"{mounts[0].path} is on {mounts[0].part}" if mounts else f"it is {part.fs}"
            raise UsageError(f"{name}: the root cannot stay as it is, {why}: --format squashfs")
        keep = wish.root_format in ("auto", "keep") and not mounts and part.fs in KEEPABLE
        if keep and wish.exclude:
            raise UsageError("--exclude: the root stays as it is; --format squashfs leaves out")
        origin = {
            "source": name, "kind": kind,
            "root": f"{part}, {part.fs}" + ("" if keep else f", as {wish.packed}"),
        }  # fmt: skip
        notes = [f"  with {each.path} of {each.part}" for each in mounts]
        notes += [f"  {path} is on another disk: seats do not have it" for path in elsewhere]
        place = (raw, part) if keep else None
        yield Found(tree, tree.title(), release, vmlinuz, origin, place, tuple(notes))


def _kernel(
    stack: contextlib.ExitStack, raw: Path, parts: Sequence[Partition], root: Partition,
    boot: Sequence[Mount], tree: Tree, wish: Wish, work: Path,
) -> tuple[str, Path]:  # fmt: skip
    """Release and bzImage: in the root, on the /boot of its fstab, or on an EFI partition.

    A partition is only looked into if what was looked into before has no kernel for seats.
    """
    chosen = [each.part for each in boot]
    chosen += [part for part in parts if part.is_for_kernels and part not in chosen]
    if wish.boot_part is not None:
        chosen = [part for part in parts if part.number == wish.boot_part]
        if not chosen and wish.boot_part:
            there = ", ".join(str(part.number) for part in parts)
            raise UsageError(f"there is no partition {wish.boot_part}; there are {there}")
    chosen = [part for part in chosen if part != root and part.fs]
    trees = [tree]
    while True:
        try:
            return kernel_in(trees, raw.name, wish.kernel)
        except UsageError:
            if not chosen:
                raise
        part = chosen.pop(0)
        trees.append(stack.enter_context(mounted(raw, part, work / f"boot{part.number}")))


def _further(stack: contextlib.ExitStack, raw: Path, each: Mount, tree: Tree) -> None:
    where = tree.find(each.path)
    if where is None or not where.is_dir():
        raise UsageError(f"the root has no directory {each.path} for {each.part}")
    stack.enter_context(mounted(raw, each.part, where, each.subvolume))


def import_image(
    library: Library, source: Path, wish: Wish, log: Path, progress: Progress
) -> Image:
    """The image of ``source`` in the library: whole, with digests, or not at all.

    UsageError, HostError.
    """
    with library.making(wish.name, wish.version, _digests(progress)) as new:
        work = new / ".work"
        work.mkdir()
        with found_in(source, wish, work, progress) as found:
            for line in found.lines:
                progress(line)
            if isinstance(found, FoundLive):
                build_live(found, wish, new, log, progress)
            else:
                build(found, wish, new, work, log, progress)
        shutil.rmtree(work)
    return library.find(f"{wish.name}@{wish.version}")


def _digests(progress: Progress) -> Report:
    shown = -1

    def report(_what: str, done: int, total: int) -> None:
        nonlocal shown
        if shown < 0:
            progress("recording the digests")
        if (percent := 100 * done // max(total, 1)) != shown:
            shown = percent
            progress(f"{percent} %")

    return report


def build(found: Found, wish: Wish, new: Path, work: Path, log: Path, progress: Progress) -> None:
    """Write the image of ``found`` into the directory ``new``, with its manifest.

    UsageError, HostError; what is in ``new`` is then for nobody.
    """
    image = f"{wish.name}@{wish.version}"
    words = f"{CMDLINE.format(shelf=wish.shelf)} {wish.cmdline}".strip()
    check_room(new, size_of(found.tree.root, found.keep))
    progress(f"kernel {found.release} and its initramfs")
    kernel = stage_kernel(found.tree, found.release, found.vmlinuz, work / "kernel")
    shutil.copyfile(kernel.vmlinuz, new / "vmlinuz")
    seat_initramfs(kernel, found.tree, new / "initrd", image=image)
    progress("making the boot disk")
    build_bootdisk(new / "boot.img", vmlinuz=new / "vmlinuz", initrd=new / "initrd", cmdline=words)
    root = new / ("root.img" if found.keep else f"root.{wish.packed}")
    if found.keep:
        progress("copying the root file system")
        copy_root(*found.keep, root, progress)
    else:
        progress("packing the root file system")
        pack_root(found.tree.root, root, wish, log, progress)
    root.chmod(PRIVATE)
    devices = {"boot": "boot.img", "root": root.name}
    diskless_only = "" if wish.maintenance else "it was imported with --no-maintenance"
    if wish.maintenance:
        progress("making the maintenance disk")
        own = work / "initrd.own"
        seat_initramfs(kernel, found.tree, own, image=image, disks=True)
        system = System(wish.name, wish.version, wish.released, new / "vmlinuz", own, root, words)
        build_tfm(new / "tfm.img", system, kernel, shelf=wish.shelf)
        devices |= TFM
    shutil.copyfile(log, new / "build.log")
    manifest = Manifest(
        wish.name, wish.version, "x86", words, devices, wish.released,
        origin=found.origin | {"system": found.title, "kernel": found.release},
        diskless_only=diskless_only,
        maintenance=maintenance_words(wish.shelf) if wish.maintenance else "",
    )  # fmt: skip
    (new / "manifest.json").write_text(manifest.to_json())
