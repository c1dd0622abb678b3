"""The initramfs of a diskless client: busybox, the drivers that a client may need, and init.sh."""

import gzip
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.client.kernel import Kernel, unpacked
from pxed.errors import HostError

# What init.sh loads by name, and the network cards of virtual and common real machines. A kernel
# that lacks one, or has it built in, is fine.
MODULES = (
    "aoe", "overlay", "squashfs", "erofs", "ext4", "crc32c_generic", "crc32c_intel", "vfat",
    "nls_cp437", "nls_ascii",
)  # fmt: skip
DRIVERS = (
    "virtio_pci", "virtio_net", "e1000", "e1000e", "igb", "igc", "r8169", "tg3", "vmxnet3",
)  # fmt: skip


# What the scripts call. A static busybox of Debian's runs all of it without a link; others do not.
COMMANDS = (
    "cat", "cp", "cttyhack", "dd", "grep", "head", "ln", "ls", "md5sum", "mkdir", "modprobe",
    "mount", "mv", "readlink", "reboot", "rm", "rmdir", "sed", "setsid", "sh", "sleep",
    "switch_root", "sync", "tr", "umount", "usleep",
)  # fmt: skip


def build_initramfs(
    kernel: Kernel,
    destination: Path,
    *,
    drivers: tuple[str, ...] = DRIVERS,
    level: int = 12,
    programs: Mapping[str, bytes] | None = None,
    full: bool = False,
    packer: str = "zstd",
) -> None:
    """Write the compressed initramfs for ``kernel``; HostError if a needed program is missing.

    ``programs``: as for ``start_archive``; ``full``: for a root with systemd in place of the
    minimal image's. ``packer``: zstd or gzip. Nothing of what is packed is run.
    """
    archive = start_archive(kernel, drivers, programs)
    if full:
        archive.file("keep.sh", script("keep.sh"))
    if packer == "gzip":
        destination.write_bytes(gzip.compress(bytes(archive), 9, mtime=0))
    else:
        destination.write_bytes(compressed(bytes(archive), level))


def start_archive(
    kernel: Kernel, drivers: Sequence[str], programs: Mapping[str, bytes] | None = None
) -> Cpio:
    """What starts any root over the network or from a disk: busybox, init.sh, drivers.

    ``programs``: bin/busybox and its libraries, by their place, for another processor than this
    machine's.
    """
    archive = Cpio()
    for name in ("dev", "proc", "sys", "run"):
        archive.directory(name)
    if programs is None:
        programs = {"bin/busybox": busybox().read_bytes()}
    for name, data in programs.items():
        archive.file(name, data, 0o755)
    for name in COMMANDS:
        archive.symlink(f"bin/{name}", "busybox")
    # The kernel itself calls this when a file system type is missing.
    archive.symlink("sbin/modprobe", "../bin/busybox")
    archive.file("init", script("init.sh"), 0o755)
    for name, inside in (
        ("functions.sh", "functions.sh"), ("layers.sh", "layers.sh"), ("local.sh", "local.sh"),
        ("installer/state.sh", "state.sh"),
    ):  # fmt: skip
        archive.file(inside, script(name))
    add_modules(archive, kernel, kernel.closure([*drivers, *MODULES]))
    return archive


def script(name: str) -> bytes:
    """A file of this package that runs on the client."""
    return resources.files("pxed.client").joinpath(name).read_bytes()


def busybox() -> Path:
    """The host's static busybox, which is also the client's; HostError if it is not installed."""
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if path.is_file():
            # A dynamic one cannot run in an initramfs without its libraries: look for PT_INTERP's.
            if b"/ld-linux" in path.read_bytes()[:4096]:
                raise HostError(f"{path} is not static: apt install busybox-static")
            return path
    raise HostError("busybox is missing: apt install busybox-static")


def add_modules(archive: Cpio, kernel: Kernel, files: list[Path], below: str = "") -> None:
    """The module files, and indexes that know just these, so that modprobe has little to read.

    ``below``: a directory of the archive, with a slash, in place of its root.
    """
    inside = f"lib/modules/{kernel.release}"
    with tempfile.TemporaryDirectory(prefix="pxed-modules-") as name:
        staged = Path(name) / inside
        for file in files:
            data = unpacked(kernel.modules / file)
            # The whole archive is packed, and not every busybox or kernel unpacks a single module.
            if file.suffix != ".ko":
                file = file.with_suffix("")
            archive.file(f"{below}{inside}/{file}", data)
            (staged / file).parent.mkdir(parents=True, exist_ok=True)
            (staged / file).write_bytes(data)
        for index in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            if (kernel.modules / index).is_file():
                (staged / index).write_bytes((kernel.modules / index).read_bytes())
        try:
            subprocess.run(
                ["depmod", "-b", name, kernel.release],
                check=True, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        except FileNotFoundError:
            raise HostError("depmod is missing: apt install kmod") from None
        except subprocess.CalledProcessError as error:
            raise HostError(f"depmod failed: {error.stderr.strip()}") from None
        for index in ("modules.dep", "modules.alias"):
            archive.file(f"{below}{inside}/{index}", (staged / index).read_bytes())


def drivers(name: str) -> list[str]:
    """The names in one of the lists of drivers beside this file: ``modules`` or ``disks``."""
    lines = script(name).decode().splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def compressed(data: bytes, level: int = 12) -> bytes:
    """An initramfs as the kernel takes it; HostError if zstd is missing."""
    try:
        return subprocess.run(
            ["zstd", "-q", f"-{level}", "-c"],
            input=data, check=True, capture_output=True, timeout=120,
        ).stdout  # fmt: skip
    except FileNotFoundError:
        raise HostError("zstd is missing: apt install zstd") from None
