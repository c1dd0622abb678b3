"""Builds the minimal lab image: a boot disk, a busybox root and their manifest."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from pxed.client.bootdisk import build_bootdisk
from pxed.client.imagedir import TFM, Manifest, day_of, epoch_now, image_directory, squash
from pxed.client.initramfs import DRIVERS, build_initramfs, busybox, drivers, script
from pxed.client.kernel import DEFAULT_PACKAGE, fetch_kernel
from pxed.client.tfm import System, build_tfm, maintenance_words

# aoe_deadsecs=0: a client outlives any outage of its server; panic: nobody sits at it who would
# press its button. The last three save half a second of 2.5 in a client without KVM: no self-tests
# of ciphers, no code patching for a single processor.
CMDLINE = (
    "aoe.aoe_deadsecs=0 pxed.shelf={shelf} console=tty0 console=ttyS0 quiet loglevel=3 "
    "random.trust_cpu=on panic=30 nowatchdog mitigations=off cryptomgr.notests noreplace-smp"
)
_PROGRAMS = ("bin/busybox", "bin/pxed-report", "bin/pxed-good", "etc/rc", "etc/udhcpc.sh")


def build_minimal(
    destination: Path,
    *,
    name: str = "lab",
    version: str | None = None,
    shelf: int = 16,
    cmdline: str = "",
    package: str = DEFAULT_PACKAGE,
    files: dict[str, bytes] | None = None,
    maintenance: bool = False,
    released: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the image into the directory ``destination``, which must not be there or be empty.

    ``version`` is today's date unless given; ``cmdline`` is added to the kernel's command line;
    ``files`` are put into the root as well, by absolute path. ``maintenance``: with a disk for
    maintenance mode, from which it is installed; ``released``, a date, is today. The same arguments
    with the same SOURCE_DATE_EPOCH (default: today) give the same bytes. The directory also
    keeps vmlinuz and initrd, for servers that hand them out by HTTP. Appears whole or not at all.
    UsageError for a name that cannot be a directory's or a destination in use; HostError if a
    program is missing.
    """
    version = version or date.today().strftime("%Y.%m.%d")
    words = f"{CMDLINE.format(shelf=shelf)} {cmdline}".strip()
    epoch = epoch_now()
    released = released or day_of(epoch)
    manifest = Manifest(
        name, version, "x86", words, released=released,
        maintenance=maintenance_words(shelf) if maintenance else "",
    )  # fmt: skip
    if maintenance:
        manifest.devices.update(TFM)
    with image_directory(destination, manifest) as work:
        kernel = fetch_kernel(package, progress=progress)
        progress("packing the initramfs")
        shutil.copyfile(kernel.vmlinuz, work / "vmlinuz")
        build_initramfs(kernel, work / "initrd", drivers=DRIVERS)
        progress("making the boot disk")
        build_bootdisk(
            work / "boot.img",
            vmlinuz=work / "vmlinuz",
            initrd=work / "initrd",
            cmdline=words,
            epoch=epoch,
        )
        progress("making the root file system")
        _build_root(work / "root.squashfs", f"{name}@{version}", files or {}, epoch)
        if maintenance:
            progress("making the maintenance disk")
            own = work / "initrd.own"
            build_initramfs(kernel, own, drivers=(*DRIVERS, *drivers("disks")))
            system = System(
                name, version, released, work / "vmlinuz", own, work / "root.squashfs", words
            )
            build_tfm(work / "tfm.img", system, kernel, shelf=shelf, epoch=epoch)
            own.unlink()
    progress(f"built {name}@{version}")
    return manifest


def _build_root(destination: Path, image: str, files: dict[str, bytes], epoch: int) -> None:
    """A busybox system as one squashfs; its size is a multiple of 4 KiB, its times ``epoch``."""
    with tempfile.TemporaryDirectory(prefix="root-", dir=destination.parent) as name:
        root = Path(name)
        for folder in (
            "bin", "sbin", "etc", "config", "dev", "proc", "sys", "run", "root", "tmp", "var",
        ):  # fmt: skip
            (root / folder).mkdir()
        shutil.copyfile(busybox(), root / "bin/busybox")
        for link in _applets(root / "bin/busybox"):
            if link not in ("busybox", "linuxrc"):
                (root / "bin" / link).symlink_to("busybox")
        (root / "sbin/init").symlink_to("../bin/busybox")
        (root / "bin/pxed-report").write_bytes(script("report.sh"))
        (root / "etc/rc").write_bytes(script("rc.sh"))
        (root / "bin/pxed-good").write_bytes(script("good.sh"))
        (root / "usr/share/pxed").mkdir(parents=True)
        (root / "usr/share/pxed/state.sh").write_bytes(script("installer/state.sh"))
        (root / "etc/udhcpc.sh").write_bytes(script("udhcpc.sh"))
        (root / "etc/inittab").write_bytes(script("inittab"))
        (root / "etc/pxed-image").write_text(f"{image}\n")
        (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\n")
        (root / "etc/profile").write_text("export PATH=/bin:/sbin HOME=/root\ncd /root\n")
        for inside, data in files.items():
            target = root / inside.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        _settle(root, epoch)
        squash(root, destination, "-comp", "lz4", "-Xhc", "-all-root", "-no-xattrs", epoch=epoch)


def _settle(root: Path, epoch: int) -> None:
    """Modes and times that do not depend on who builds, and when."""
    for folder, folders, names in os.walk(root, topdown=False):
        for name in (*names, *folders):
            path = Path(folder, name)
            if not path.is_symlink():
                inside = str(path.relative_to(root))
                path.chmod(0o755 if path.is_dir() or inside in _PROGRAMS else 0o644)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (epoch, epoch))


def _applets(program: Path) -> list[str]:
    program.chmod(0o755)
    listed = subprocess.run(
        [str(program), "--list"], check=True, capture_output=True, text=True, timeout=60
    )
    return listed.stdout.split()
