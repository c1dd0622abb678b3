"""A QEMU machine for fault tests: Debian's kernel, this checkout's server, and one script as init.

Its root is a squashfs made of the host's Python, a few programs and the compiled packages, so what
runs inside is what is tested outside. The console is the way in and out.
"""

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.client.initramfs import _add_modules, busybox
from pxed.client.kernel import fetch_kernel

ROOT = Path(__file__).parents[2]
MODULES = (
    "virtio_pci", "virtio_blk", "virtio_net", "squashfs", "ext4", "crc32c_generic", "crc32c_intel",
    "aoe", "veth", "af_packet",
)  # fmt: skip

_INIT = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
busybox mount -t devtmpfs none /dev
for each in MODULES; do busybox modprobe $each 2>/dev/null; done
until [ -b /dev/vda ]; do busybox sleep 0.1; done
busybox mount -o ro -t squashfs /dev/vda /root
for each in proc sys dev; do busybox mount -o bind /$each /root/$each; done
for each in tmp run srv etc; do busybox mount -t tmpfs none /root/$each; done
busybox mkdir /root/srv/state /root/srv/client
busybox cp /script /root/run/script
busybox stty -F /dev/ttyS0 -echo -icrnl 2>/dev/null
busybox chroot /root /bin/busybox sh /run/script </dev/ttyS0 >/dev/ttyS0 2>&1
echo "guest: script ended with $?" >/dev/ttyS0
busybox poweroff -f
"""


def build_root(directory: Path, programs: Iterable[str] = ()) -> Path:
    """The squashfs: Python with numpy and click, ``aoe_fast``, and ``programs`` of the host."""
    tree = directory / "tree"
    for name in ("proc", "sys", "dev", "tmp", "run", "srv", "etc", "bin", "usr/bin", "root"):
        (tree / name).mkdir(parents=True)
    binaries = [Path("/usr/bin/python3")]
    for each in ("ip", "mkfs.ext4", *programs):
        found = shutil.which(each, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found, each
        binaries.append(Path(found))
    shutil.copy(busybox(), tree / "bin/busybox")
    for name in ("sh", "mount", "umount", "sleep", "cat", "sync", "ls", "kill"):
        (tree / "bin" / name).symlink_to("busybox")
    standard = Path(sysconfig.get_path("stdlib"))
    wanted = shutil.ignore_patterns("__pycache__", "test", "tests", "idlelib", "ensurepip")
    shutil.copytree(standard, tree / standard.relative_to("/"), ignore=wanted)
    site = tree / "site"
    site.mkdir()
    for package in ("numpy", "click"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, site / package, ignore=wanted)
        libraries = Path(spec.origin).parents[1] / f"{package}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name)
    shutil.copytree(ROOT / "aoe_fast", site / "aoe_fast",
                    ignore=shutil.ignore_patterns("*.c", "*.pyx", "__pycache__"))  # fmt: skip
    objects = [*binaries, *tree.rglob("*.so*")]
    for binary in binaries:
        target = tree / "usr/bin" / binary.name
        shutil.copy(binary, target)
    for library in _libraries(objects):
        target = tree / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(library, target)
    image = directory / "root.squashfs"
    subprocess.run(
        ["mksquashfs", str(tree), str(image), "-quiet", "-no-progress", "-noI", "-noD", "-noF",
         "-noX", "-all-root"], check=True,
    )  # fmt: skip
    shutil.rmtree(tree)
    return image


def _libraries(objects: list[Path]) -> set[Path]:
    """What the dynamic linker would load for these, and the linker itself."""
    done = subprocess.run(["ldd", *map(str, objects)], capture_output=True, text=True, check=False)
    found = re.findall(r"(?<=\s)(/(?:usr/)?lib(?:64)?/\S*\.so\S*)", done.stdout)
    return {Path(each) for each in found if not each.endswith(":")}


def boot_options(directory: Path, root: Path, script: str) -> tuple[str, ...]:
    """QEMU's options to boot ``script`` (for busybox's sh) in ``root``; it is disk vda."""
    kernel = fetch_kernel()
    archive = Cpio()
    for name in ("dev", "proc", "sys", "root"):
        archive.directory(name)
    archive.file("bin/busybox", busybox().read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.symlink("sbin/modprobe", "../bin/busybox")
    archive.file("init", _INIT.replace("MODULES", " ".join(MODULES)).encode(), 0o755)
    archive.file("script", script.encode())
    _add_modules(archive, kernel, kernel.closure(MODULES))
    initrd = directory / "initrd"
    initrd.write_bytes(bytes(archive))
    return (
        "-kernel", str(kernel.vmlinuz), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet cryptomgr.notests panic=-1", "-no-reboot",
        "-drive", f"if=none,id=root,format=raw,readonly=on,file={root}",
        "-device", "virtio-blk-pci,drive=root",
    )  # fmt: skip


def logged_disk(disk: Path, log: Path) -> tuple[str, ...]:
    """QEMU's options for a disk (vdb) whose every write and flush goes to ``log`` too."""
    return (
        "-blockdev", f"driver=file,node-name=data,filename={disk},cache.no-flush=on",
        "-blockdev", f"driver=file,node-name=log,filename={log},cache.no-flush=on",
        "-blockdev", "driver=blklogwrites,node-name=logged,file=data,log=log",
        "-device", "virtio-blk-pci,drive=logged",
    )  # fmt: skip
