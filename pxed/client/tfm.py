"""Maintenance mode: one small system that the network and a USB stick share, and its installer.

``tfm.img`` is a boot disk as any other (BIOS and UEFI) with one more partition, ``pxed-payload``: a
tar archive with what a system needs to start from a disk. A stick has the root beside it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.client.bootdisk import build_bootdisk
from pxed.client.bootloader import archive, build_loader, slot_config
from pxed.client.imagedir import TFM_INITRD, host_errors
from pxed.client.initramfs import MODULES, add_modules, busybox, compressed, drivers, script
from pxed.client.kernel import Kernel
from pxed.client.programs import add_programs
from pxed.errors import HostError, UsageError

PROGRAMS = {"sfdisk": "fdisk", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs"}
_SCRIPTS = ("rule", "state", "disks", "ask", "install")
# The screen comes last: it is the console that a person sits at. Both are written to.
CMDLINE = (
    "aoe.aoe_deadsecs=0 pxed.shelf={shelf} console=ttyS0 console=tty0 quiet loglevel=3 "
    "random.trust_cpu=on cryptomgr.notests panic=30"
)
_FIRST = 1 << 20  # byte where the boot partition of such a disk begins


@dataclass(frozen=True)
class System:
    """What is installed: ``initrd`` starts it from a disk, ``cmdline`` is its kernel's.

    ``released``: YYYY-MM-DD.
    """

    name: str
    version: str
    released: str
    vmlinuz: Path
    initrd: Path
    root: Path
    cmdline: str


def maintenance_words(shelf: int) -> str:
    """The kernel command line of maintenance mode."""
    return CMDLINE.format(shelf=shelf)


def build_tfm(
    destination: Path, system: System, kernel: Kernel, *, shelf: int, epoch: int | None = None
) -> None:
    """Write the maintenance disk of an image, and its initramfs beside it for boots by HTTP.

    HostError if a program or a package is missing.
    """
    with tempfile.TemporaryDirectory(prefix="pxed-tfm-", dir=destination.parent) as name:
        work = Path(name)
        payload = work / "payload"
        payload.write_bytes(build_payload(system))
        initrd = work / "initrd"
        build_maintenance(kernel, initrd, work, epoch)
        build_bootdisk(
            destination,
            vmlinuz=kernel.vmlinuz,
            initrd=initrd,
            cmdline=maintenance_words(shelf),
            parts=(("pxed-payload", payload),),
            epoch=epoch,
        )
        initrd.replace(destination.with_name(TFM_INITRD))


def build_payload(system: System) -> bytes:
    """The archive that becomes a boot partition; ``release`` is first, in one sector."""
    digest, size = hashlib.sha256(), 0
    with system.root.open("rb") as root:
        while block := root.read(1 << 20):
            digest.update(block)
            size += len(block)
    if size % 4096:
        raise HostError(f"{system.root} is no multiple of 4 KiB: build the image again")
    said = (
        f"name={system.name}\nversion={system.version}\nreleased={system.released}\n"
        f"root_size={size}\nroot_sha256={digest.hexdigest()}\nboot_size="
    )
    files = {
        "grub.cfg": slot_config(system.cmdline),
        "vmlinuz": system.vmlinuz.read_bytes(),
        "initrd": system.initrd.read_bytes(),
    }
    # Whatever its number of digits, the text stays in its sector, so the size is the same.
    boot_size = len(archive({"release": said.encode(), **files}))
    return archive({"release": f"{said}{boot_size}\n".encode(), **files})


def build_maintenance(kernel: Kernel, target: Path, work: Path, epoch: int | None) -> None:
    """Write the initramfs that is all of maintenance mode."""
    cpio = Cpio()
    for name in ("dev", "proc", "sys", "run", "etc"):
        cpio.directory(name)
    cpio.file("bin/busybox", busybox().read_bytes(), 0o755)
    cpio.symlink("bin/sh", "busybox")
    cpio.symlink("sbin/modprobe", "../bin/busybox")
    cpio.file("init", script("installer/init.sh"), 0o755)
    cpio.file("functions.sh", script("functions.sh"))
    for name in _SCRIPTS:
        cpio.file(f"installer/{name}.sh", script(f"installer/{name}.sh"))
    cpio.file("etc/mke2fs.conf", script("installer/mke2fs.conf"))
    add_programs(cpio, PROGRAMS)
    loader = work / "loader"
    loader.mkdir()
    for name, data in build_loader(loader, epoch).items():
        cpio.file(f"loader/{name}", data)
    names = [*drivers("modules"), *drivers("disks"), *MODULES]
    add_modules(cpio, kernel, kernel.closure(names))
    target.write_bytes(compressed(bytes(cpio)))


def build_stick(image: Path, destination: Path, orders: bytes = b"") -> None:
    """Write a disk image for a USB stick that installs the image in directory ``image`` by itself.

    ``orders``: what a server would say (pxed.provision); without it the installer asks. UsageError
    for an image without maintenance disk.
    """
    manifest = json.loads((image / "manifest.json").read_text())
    devices = manifest["devices"]
    if "tfm" not in devices:
        raise UsageError(
            f"image {manifest['name']}@{manifest['version']} has no maintenance disk: "
            "build it again with this version of pxed"
        )
    tfm, root = image / devices["tfm"], image / devices["root"]
    with (
        host_errors(destination),
        tempfile.TemporaryDirectory(prefix=".pxed-stick-", dir=destination.parent) as name,
    ):
        work = Path(name)
        for file in ("vmlinuz", "initrd", "syslinux.cfg"):
            _run(["mcopy", "-i", f"{tfm}@@{_FIRST}", f"::/{file}", str(work / file)], "mtools")
        payload = work / "payload"
        _take(tfm, "pxed-payload", payload)
        (append,) = (
            line.split(None, 1)[1]
            for line in (work / "syslinux.cfg").read_text().splitlines()
            if line.split()[:1] == ["APPEND"]
        )
        parts: list[tuple[str, Path]] = [("pxed-payload", payload), ("pxed-os", root)]
        if orders:
            (work / "orders").write_bytes(orders.ljust(4096, b"\0"))
            parts.append(("pxed-orders", work / "orders"))
        disk = work / "stick"
        build_bootdisk(
            disk,
            vmlinuz=work / "vmlinuz",
            initrd=work / "initrd",
            cmdline=f"{append} pxed.source=stick",
            parts=parts,
        )
        os.replace(disk, destination)


def _take(disk: Path, name: str, target: Path) -> None:
    """Copy the partition called ``name`` out of a disk image."""
    table = json.loads(_run(["sfdisk", "--json", str(disk)], "fdisk"))["partitiontable"]
    (part,) = (each for each in table["partitions"] if each.get("name") == name)
    with disk.open("rb") as source, target.open("wb") as out:
        source.seek(part["start"] * 512)
        left = part["size"] * 512
        while left and (block := source.read(min(left, 1 << 20))):
            out.write(block)
            left -= len(block)


def _run(argv: Sequence[str], package: str) -> str:
    if shutil.which(argv[0]) is None:
        raise HostError(f"{argv[0]} is missing: apt install {package}")
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)
    if done.returncode:
        why = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise HostError(f"{argv[0]} failed: {why}")
    return done.stdout
