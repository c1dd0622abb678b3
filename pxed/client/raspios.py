"""Builds an image for Raspberry Pis out of a root like Raspberry Pi OS's; runs none of it.

A Pi's own firmware loads kernel and initramfs by TFTP; the root then comes over AoE, as everywhere.
"""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from pxed import pi
from pxed.client.armroot import ArmRoot, plain_kernel
from pxed.client.debian import new_log
from pxed.client.debroot import put_files, run_alone
from pxed.client.debs import fetch_package
from pxed.client.imagedir import Manifest, day_of, epoch_now, image_directory, workplace
from pxed.client.initramfs import build_initramfs, busybox, drivers, script
from pxed.client.pitree import build_disk, build_tree, command_line, kernel_name
from pxed.client.unified import unify
from pxed.errors import HostError, UsageError

COMPRESSIONS = {
    "zstd": ("SQUASHFS_ZSTD", "-comp zstd -Xcompression-level 15"),
    "xz": ("SQUASHFS_XZ", "-comp xz"),
    "lz4": ("SQUASHFS_LZ4", "-comp lz4 -Xhc"),
    "gzip": ("SQUASHFS_ZLIB", "-comp gzip"),
}
"""mksquashfs's words, and the kernel option without which they cannot be read."""
FIRMWARE = "firmware"
EFI = "pxed.efi"
_DNS = (
    ("dns.sh", "usr/sbin/pxed-dns", 0o755),
    ("system/pxed-dns.service", "usr/lib/systemd/system/pxed-dns.service", 0o644),
    ("system/pxed-dns.path", "usr/lib/systemd/system/pxed-dns.path", 0o644),
)
"""For a root without systemd-resolved."""
_ROOM = 256 << 20

Progress = Callable[[str], None]


def build_raspios(
    destination: Path,
    source: Path,
    *,
    name: str,
    version: str,
    boot: Path | None = None,
    shelf: int = 17,
    cmdline: str = "",
    compression: str = "auto",
    uefi: bool = False,
    progress: Progress = lambda _: None,
) -> list[pi.Lack]:
    """Write the image of ``source`` into the new directory ``destination``; whole or not at all.

    ``source``: a directory or a tar archive; ``boot``: its boot directory where that is not in it.
    ``compression`` auto: the best that its kernel can read. ``uefi``: with an EFI program, for
    machines with an ARM processor whose firmware is UEFI; its stub comes from Debian. The same
    input with the same SOURCE_DATE_EPOCH (default: today) gives the same bytes. The result is what
    keeps a model from booting it. UsageError for a root that cannot be a seat's, HostError.
    """
    if compression not in ("auto", *COMPRESSIONS):
        raise UsageError(
            f"{compression!r}: compression is auto or one of {', '.join(COMPRESSIONS)}"
        )
    _check_host()
    epoch = epoch_now()
    released = day_of(epoch)
    log = new_log("raspios", f"{name}@{version}")
    progress(f"the log is {log}")
    with workplace(destination.parent) as aside:
        top = _unpacked(source, aside, log, progress)
        root = ArmRoot(top)
        root.check()
        if boot is None:
            boot = root.boot_directory()
        elif not any(boot.glob("start*.elf")):
            raise UsageError(f"{boot}: has no start*.elf: it is no Raspberry Pi's boot directory")
        kernel_file = kernel_name(boot)
        kernel = root.kernel(boot / kernel_file)
        options = root.kernel_options(kernel.release)
        packer, words = _choose(compression, options), command_line(boot, shelf, cmdline)
        progress(f"kernel {kernel.release}; the root is packed by {packer}")
        plain = plain_kernel(boot / kernel_file)
        packed = plain != (boot / kernel_file).read_bytes()
        efi = {
            "vmlinuz": "vmlinuz" if packed else f"{FIRMWARE}/{kernel_file}",
            "initrd": f"{FIRMWARE}/{pi.INITRAMFS}",
        }
        # Without an EFI program's mark only a Pi's own firmware can start it.
        starts = plain[:2] == b"MZ"
        if uefi and not starts:
            raise UsageError(f"Linux {kernel.release} has no EFI stub: leave --uefi out")
        manifest = Manifest(
            name, version, "rpi", words, released=released, tree=FIRMWARE,
            kernel=efi if starts else {}, efi=EFI if uefi else "",
        )  # fmt: skip
        with image_directory(destination, manifest) as work:
            _compress(top, work, f"{name}@{version}", COMPRESSIONS[packer][1], epoch, log, progress)
            progress("packing the initramfs")
            initramfs = work / "initramfs"
            build_initramfs(
                kernel,
                initramfs,
                drivers=(*drivers("modules"), *drivers("pi")),
                programs=_programs(root, progress),
                full=True,
                packer="zstd" if "RD_ZSTD" in options else "gzip",
            )
            if starts and packed:
                (work / "vmlinuz").write_bytes(plain)
            progress("making the boot directory and its disk")
            tree = work / FIRMWARE
            build_tree(tree, boot, initramfs=initramfs, cmdline=words, epoch=epoch)
            initramfs.unlink()
            build_disk(work / "boot.img", tree, epoch=epoch)
            if uefi:
                progress("making the EFI program")
                parts = {
                    ".cmdline": words.encode(),
                    ".initrd": (tree / pi.INITRAMFS).read_bytes(),
                    ".linux": plain,
                }
                (work / EFI).write_bytes(unify(_stub(progress), parts))
            shutil.copyfile(log, work / "build.log")
            found = pi.lacks(tree, shelf)
    progress(f"built {name}@{version}")
    return found


def _check_host() -> None:
    if os.geteuid() != 0:
        raise HostError("owners of files are kept by root only: sudo pxed image build raspios-like")
    missing = [
        package
        for program, package in (
            ("mksquashfs", "squashfs-tools"), ("mcopy", "mtools"), ("mkfs.fat", "dosfstools"),
            ("sfdisk", "fdisk"), ("readelf", "binutils"), ("zstd", "zstd"), ("depmod", "kmod"),
            ("unshare", "util-linux"),
        )
        if shutil.which(program) is None
    ]  # fmt: skip
    if missing:
        raise HostError(f"programs are missing: apt install {' '.join(missing)}")


def _unpacked(source: Path, aside: Path, log: Path, progress: Progress) -> Path:
    """A directory with the root: ``source`` itself, or what is in the archive."""
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        if source.resolve() == Path("/"):
            raise UsageError("this machine's own root is made an image by pxed promote")
        return source.resolve()
    if not stat.S_ISREG(mode):
        raise UsageError(f"{source}: must be a directory or a tar archive")
    progress(f"unpacking {source.name}")
    top = aside / "source"
    top.mkdir()
    argv = [
        "tar", "-C", str(top), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf",
        str(source.resolve()),
    ]  # fmt: skip
    run_alone(argv, log, timeout=1800, what=f"unpacking {source.name}")
    inside = list(top.iterdir())
    # Archives are made of a root, or of the directory that it lies in.
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else top


def _choose(compression: str, options: frozenset[str]) -> str:
    """What the root is packed by: Raspberry Pi's own kernels do not read all."""
    if compression == "auto":
        return "zstd" if COMPRESSIONS["zstd"][0] in options else "gzip"
    if options and (needs := COMPRESSIONS[compression][0]) not in options:
        raise UsageError(
            f"--compression {compression}: this kernel cannot read it (no CONFIG_{needs}): "
            "leave it out"
        )
    return compression


def _programs(root: ArmRoot, progress: Progress) -> dict[str, bytes]:
    """The initramfs's busybox: the root's own, or else Debian's."""
    if (own := root.busybox()) is not None:
        return own
    progress("the root has no busybox: fetching Debian's")
    fetched = fetch_package("busybox-static", "arm64", progress=progress)
    return {"bin/busybox": (fetched / "bin/busybox").read_bytes()}


def _stub(progress: Progress) -> bytes:
    """systemd's EFI stub for arm64: this machine's, if it has that one, or else Debian's."""
    name = "usr/lib/systemd/boot/efi/linuxaa64.efi.stub"
    for top in (Path("/"), fetch_package("systemd-boot-efi", "arm64", progress=progress)):
        if (top / name).is_file():
            return (top / name).read_bytes()
    raise HostError(f"Debian's systemd-boot-efi for arm64 has no {name}")


def _compress(
    top: Path, work: Path, image: str, words: str, epoch: int, log: Path, progress: Progress
) -> None:
    aside = work.parent
    tools = aside / "tools"
    put_files(tools / "files")
    put_files(tools / "dns", _DNS)
    shutil.copy(busybox(), tools / "busybox")
    (tools / "inside.sh").write_bytes(script("raspios-inside.sh"))
    (aside / "raspios.sh").write_bytes(script("raspios.sh"))
    progress("making it a network client")

    def see(line: str) -> None:
        if line.startswith("pxed: "):
            progress(line.removeprefix("pxed: "))
        elif line.startswith("[") and line.endswith("%"):
            progress(line.rpartition(" ")[2])
        if shutil.disk_usage(work).free < _ROOM:
            raise HostError(f"{work.parents[1]}: the disk is nearly full: nothing was changed")

    env = {
        "SOURCE": str(top), "WORK": str(aside), "OUT": str(work), "TOOLS": str(tools),
        "IMAGE": image, "COMPRESSION": words, "SOURCE_DATE_EPOCH": str(epoch),
    }  # fmt: skip
    argv = ["sh", str(aside / "raspios.sh")]
    run_alone(argv, log, env=env, progress=see, timeout=6 * 3600, what="packing the root")
    packed = work / "root.squashfs"
    if spare := -packed.stat().st_size % 4096:  # pages are easier on the page cache
        os.truncate(packed, packed.stat().st_size + spare)
