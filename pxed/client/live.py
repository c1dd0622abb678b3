"""A live system made an image: its own kernel and initramfs, its root served over AoE.

Its initramfs stays (pxed.client.foreign); where its kind is unknown, ours takes its place and its
root is like any other (pxed.client.importing). What a seat writes is in its memory, as from a DVD.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pxed.client.bootdisk import build_bootdisk
from pxed.client.foreign import Initramfs, append_aoe, append_question, look
from pxed.client.imagedir import Manifest, squash
from pxed.client.medium import SQUASHES, Live, Medium, live_on, release_of
from pxed.client.partitions import Partition, mounted, partitions
from pxed.client.rootfile import below, check_room, copy_root
from pxed.client.seat import stage_kernel
from pxed.client.tree import Tree
from pxed.client.wish import Progress, Wish
from pxed.errors import UsageError

WORDS = {
    "kiwi": "root=live:AOEINTERFACE=e{shelf}.1 rd.neednet=1 ip=link6",
    "dracut": "root=live:/dev/etherd/e{shelf}.1 rd.live.image rd.live.overlay.overlayfs=1",
    "live-boot": "boot=live components live-media=/dev/etherd/e{shelf}.1 boot=pxed-live",
}
"""What each kind of initramfs is told, for the AoE disk with the medium."""
_COMMON = "aoe.aoe_deadsecs=0 pxed.shelf={shelf} console=tty0 console=ttyS0"
_NESTED = ("LiveOS/rootfs.img", "LiveOS/ext3fs.img")
DISKLESS = "a live system: what seats write is in their memory, and it has no installer of ours"


@dataclass(frozen=True, slots=True)
class FoundLive:
    """A live system that was found; kernel and initramfs are copied to ``work`` already."""

    medium: Medium
    live: Live
    initramfs: Initramfs
    release: str
    work: Path

    @property
    def lines(self) -> list[str]:
        """For people."""
        how = "which knows AoE" if self.initramfs.loads_aoe else "with AoE added"
        what = f"a live system ({self.initramfs.kind}), kernel {self.release}"
        return [f"{what}, its own initramfs {how}"]

    @property
    def title(self) -> str:
        return f"a live system ({self.initramfs.kind})"

    @property
    def origin(self) -> dict[str, str]:
        kind = "ISO" if self.medium.is_iso else "directory"
        return {"source": self.medium.source.name, "kind": kind,
                "root": f"{self.live.squash}, {self.initramfs.kind}"}  # fmt: skip


def find_live(medium: Medium, work: Path) -> FoundLive:
    """The live system on ``medium``; its kernel and initramfs are in ``work`` then. UsageError."""
    live = live_on(medium)
    medium.fetch(live.kernel, work / "vmlinuz")
    medium.fetch(live.initrd, work / "initrd")
    initramfs = look((work / "initrd").read_bytes(), live.initrd)
    return FoundLive(medium, live, initramfs, release_of(work / "vmlinuz"), work)


@contextlib.contextmanager
def root_in(found: FoundLive) -> Iterator[tuple[Path, Partition, Tree]]:
    """Its root, mounted: the file that it is in, and where in that; a file in a squashfs too."""
    file = found.work / "squashfs"
    if not file.exists():
        found.medium.fetch(found.live.squash, file)
    (whole,) = partitions(file)
    with mounted(file, whole, found.work / "squash") as outer:
        nested = next(filter(None, map(outer.file, _NESTED)), None)
        if nested is None:
            yield file, whole, outer
            return
        (inner,) = partitions(nested)
        with mounted(nested, inner, found.work / "nested") as tree:
            yield nested, inner, tree


def build_live(found: FoundLive, wish: Wish, new: Path, log: Path, progress: Progress) -> None:
    """Write the image into ``new``, with its manifest. UsageError, HostError."""
    kind = found.initramfs.kind
    words = f"{WORDS[kind]} {_COMMON}".format(shelf=wish.shelf)
    if kind != "live-boot" and found.live.squash != SQUASHES[0]:
        folder, _, name = found.live.squash.rpartition("/")
        words += f" rd.live.dir={folder} rd.live.squashimg={name}"
    words = f"{words} {wish.cmdline}".strip()
    for name in ("vmlinuz", "initrd"):
        shutil.copyfile(found.work / name, new / name)
    if found.initramfs.loads_aoe:
        if wish.initramfs != "its":
            append_question(new / "initrd")
    else:
        progress(f"drivers of kernel {found.release} for its initramfs")
        with root_in(found) as (_, _, tree):
            place = found.work / "kernel"
            kernel = stage_kernel(tree, found.release, found.work / "vmlinuz", place)
        if not kernel.closure(["aoe"]):
            raise UsageError(f"kernel {found.release} has no AoE driver (aoe.ko) in its root")
        append_aoe(new / "initrd", kernel, kind)
    source = found.medium.source
    whole = Partition(0, 0, source.stat().st_size if found.medium.is_iso else below(source))
    check_room(new, whole.size)
    progress("copying the root")
    root = new / "root.img"
    if found.medium.is_iso:
        copy_root(source, whole, root, progress)
    elif kind == "dracut":
        found.medium.fetch(found.live.squash, root)
    else:
        # What its initramfs mounts has the squashfs as a file in a directory.
        inside = found.work / "medium" / found.live.squash
        inside.parent.mkdir(parents=True)
        found.medium.fetch(found.live.squash, inside)
        squash(found.work / "medium", root, "-noI", "-noD", "-noF", "-noX", timeout=3600)
    if spare := -root.stat().st_size % 4096:
        os.truncate(root, root.stat().st_size + spare)
    progress("making the boot disk")
    build_bootdisk(new / "boot.img", vmlinuz=new / "vmlinuz", initrd=new / "initrd", cmdline=words)
    shutil.copyfile(log, new / "build.log")
    manifest = Manifest(
        wish.name, wish.version, "x86", words, {"boot": "boot.img", "root": root.name},
        wish.released, origin=found.origin | {"system": found.title, "kernel": found.release},
        diskless_only=DISKLESS,
    )  # fmt: skip
    (new / "manifest.json").write_text(manifest.to_json())
