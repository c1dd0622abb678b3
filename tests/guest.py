"""A Linux machine for tests: Debian's cloud kernel in QEMU with a shell on its console.

It has what the host may lack (aoe, VLANs, dm-flakey), Debian's aoetools and e2fsprogs, and Python
with ``aoe_fast``, so that it can be an initiator or a server. Nothing is installed in it: files of
this host are packed into one squashfs, and what it writes is lost with it.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pxed.client.archive import Cpio
from pxed.client.imagedir import squash
from pxed.client.initramfs import busybox
from pxed.client.kernel import Kernel, fetch_kernel
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client

PROGRAMS = (
    "bash", "ip", "tc", "dmsetup", "mke2fs", "e2fsck",
    "aoe-discover", "aoe-flush", "aoe-interfaces", "aoe-mkshelf", "aoe-revalidate", "aoe-sancheck",
    "aoe-stat", "aoe-version", "aoecfg", "aoeping",
)  # fmt: skip
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "squashfs", "overlay")
_MODULES = (
    "virtio_net", "aoe", "8021q", "dm-mod", "dm-flakey", "sch_netem", "sch_tbf", "loop", "veth",
    "bridge",
)  # fmt: skip
_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_UNUSED = shutil.ignore_patterns(
    "test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "*.pyc", "*.c", "*.pyx", "f2py",
    "config-*",
)  # fmt: skip
_CMDLINE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 nowatchdog random.trust_cpu=on mitigations=off"
    " cryptomgr.notests noreplace-smp"
)
_INIT = """#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in MODULES; do insmod /$m; done
mkdir -p /ro /rw /new
mount -t squashfs -o ro /dev/vda /ro
mount -t tmpfs rw /rw; mkdir /rw/up /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work root /new
for d in proc sys dev; do mkdir -p /new/$d; mount -o move /$d /new/$d; done
exec switch_root /new START
"""
_START = """#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin PYTHONPATH=/app HOME=/ PYTHONDONTWRITEBYTECODE=1
mkdir -p /tmp /run /mnt
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mount -t debugfs debug /sys/kernel/debug
modprobe virtio_net; ip link set lo up; ip link set eth0 up
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
echo GUEST IS UP
# Not busybox's shell, which prefers its own commands to the real ones.
while :; do PS1='# ' setsid cttyhack bash --norc --noediting; done
"""


@dataclass(frozen=True)
class System:
    """What a guest starts from; built once and shared by all of them, read-only."""

    kernel: Path
    initrd: Path
    disk: Path


def build_system(folder: Path, *programs: str) -> System:
    """Pack the guest's system into ``folder``, with ``programs`` of this host; some seconds."""
    kernel = fetch_kernel()
    build_initrd(kernel, folder / "initrd", "/bin/start")
    _pack(kernel, folder / "system.squashfs", folder / "root", [*PROGRAMS, *programs])
    return System(kernel.vmlinuz, folder / "initrd", folder / "system.squashfs")


def build_initrd(kernel: Kernel, destination: Path, start: str, *modules: str) -> None:
    """An initramfs that runs ``start`` from the first disk, a squashfs that may be written on."""
    archive = Cpio()
    for name in ("dev", "proc", "sys", "bin", "sbin", "usr/bin"):
        archive.directory(name)
    archive.file("bin/busybox", busybox().read_bytes(), 0o755)
    files = kernel.closure([*_BOOT_MODULES, *modules])
    for file in files:
        archive.file(file.name, (kernel.modules / file).read_bytes())
    names = " ".join(file.name for file in files)
    init = _INIT.replace("MODULES", names).replace("START", start)
    archive.file("init", init.encode(), 0o755)
    destination.write_bytes(bytes(archive))


def _pack(kernel: Kernel, destination: Path, root: Path, names: list[str]) -> None:
    for each in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "dev", "proc", "sys", "app"):
        (root / each).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    programs = [Path(found) for name in names if (found := shutil.which(name))]
    programs.append(_PYTHON)
    for path in programs:
        _copy(path, root)
    shutil.copyfile(busybox(), root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    listed = subprocess.run(
        [root / "bin/busybox", "--list"], check=True, capture_output=True, text=True
    )
    have = {path.name for path in programs}
    for applet in listed.stdout.split():
        if applet not in have and applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    shutil.copytree(_LIBRARY, root / str(_LIBRARY).lstrip("/"), ignore=_UNUSED)
    (root / "usr/bin/python3").symlink_to(_PYTHON)
    for name in ("numpy", "numpy.libs", "click", "aoe_fast"):
        spec = importlib.util.find_spec(name.partition(".")[0])
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).parent.with_name(name)
        if source.is_dir():
            shutil.copytree(source, root / "app" / name, ignore=_UNUSED)
    for library in _libraries([*programs, *root.rglob("*.so*")]):
        _copy(library, root)
    modules = root / "lib/modules" / kernel.release
    for file in kernel.closure(_MODULES):
        (modules / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kernel.modules / file, modules / file)
    for index in kernel.modules.glob("modules.*"):
        shutil.copyfile(index, modules / index.name)
    subprocess.run(["depmod", "-b", root, kernel.release], check=True, capture_output=True)
    (root / "bin/start").write_text(_START)
    (root / "bin/start").chmod(0o755)
    (root / "etc/mtab").symlink_to("/proc/mounts")
    squash(root, destination, "-comp", "lz4", "-all-root", "-no-xattrs")
    shutil.rmtree(root)


def _copy(path: Path, root: Path) -> None:
    """A file of this host at its place below ``root``, under each name that it is known by."""
    for place in (path, path.resolve()):
        target = root / str(place).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(path.resolve(), target)


def _libraries(files: Iterable[Path]) -> set[Path]:
    """The shared libraries that programs and libraries need, as ldd(1) finds them."""
    names = [str(file) for file in files if not file.is_symlink() and _is_elf(file)]
    said = subprocess.run(["ldd", *names], check=False, capture_output=True, text=True).stdout
    found = {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", said)}
    return {path for path in found if str(path).startswith(("/lib", "/usr/lib"))}


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def add_guest(lab: Lab, system: System, *disks: Path, **options: Any) -> Client:
    """A guest in ``lab``, still off: eth0 on its switch; ``disks`` are /dev/vdb, /dev/vdc, ...

    ``more``: further options of QEMU; ``words``: of the kernel; the others are those of
    ``Lab.add_client``.
    """
    words = options.pop("words", "")
    extra = [
        "-kernel", str(system.kernel), "-initrd", str(system.initrd),
        "-append", f"{_CMDLINE} {words}",
        "-drive", f"file={system.disk},if=virtio,format=raw,readonly=on",
    ]  # fmt: skip
    for disk in disks:
        extra += ["-drive", f"file={disk},if=virtio,format=raw"]
    extra += options.pop("more", ())
    return lab.add_client(extra=tuple(extra), **{"memory": 640, **options})


def start_guest(lab: Lab, system: System, *disks: Path, **options: Any) -> Client:
    """The same, at its shell."""
    guest = add_guest(lab, system, *disks, **options)
    guest.power_on()
    guest.wait_for("GUEST IS UP", 150)
    guest.wait_for("(?s)GUEST IS UP.*# ", 60)
    return guest
