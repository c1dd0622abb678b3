"""The boot directory of a Raspberry Pi's image, made out of the one of its root, and as a disk.

What goes there is what the Pi's firmware reads. TFTP gives it to anybody on the segment, and a boot
partition also holds what is nobody's business: accounts, Wi-Fi passwords, scripts of a first start.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pxed import pi
from pxed.client.armroot import ArmRoot
from pxed.client.bootdisk import tool
from pxed.errors import UsageError

_FIRMWARE = (".elf", ".dat", ".bin", ".dtb", ".sig", ".upd")
_OVERLAYS = (".dtb", ".dtbo", ".txt")
_START = 4 << 20  # of the partition, where Raspberry Pi's own images have it
_FAT32_LEAST = 66_000 * 512  # with fewer clusters it would be no FAT32, which the ROMs want
_ID = "0x70786564"
# Words of a command line that mean another root, or a first start that ends in a restart.
_DROPPED = (
    "root", "rootfstype", "rootflags", "rootdelay", "init", "resume", "ip", "nfsroot", "boot",
    "fsck.mode", "fsck.repair", "systemd.run", "systemd.run_success_action",
    "systemd.run_failure_action", "systemd.unit",
)  # fmt: skip
_FLAGS = ("rootwait", "ro", "rw", "resize", "noresume")
CMDLINE = "aoe.aoe_deadsecs=0 pxed.shelf={shelf}"


def kernel_name(boot: Path) -> str:
    """The kernel that a Pi with this boot directory starts; UsageError if it is not there."""
    name = pi.settings(_config(boot), "4B").get("kernel", pi.KERNEL)
    found = ArmRoot(boot).find(name)
    if found is None or not found.is_file():
        raise UsageError(f"{boot}: has no {name}: a seat's kernel is the 64-bit one")
    return name


def command_line(boot: Path, shelf: int, more: str = "") -> str:
    """The kernel command line: what was there, without its disk, and with where the root is now."""
    found = ArmRoot(boot).find("cmdline.txt")
    text = found.read_text(errors="replace") if found is not None else ""
    words = text.partition("\n")[0].split() or ["console=tty1"]  # the firmware takes one line
    kept = [
        word for word in words
        if not (("=" in word and word.split("=")[0] in _DROPPED) or word in _FLAGS)
        and not word.startswith(("pxed.", "aoe."))
    ]  # fmt: skip
    return " ".join([CMDLINE.format(shelf=shelf), *kept, *more.split()])


def configuration(text: str, kernel: str) -> str:
    """config.txt with our kernel and initramfs for every model; the rest as it was."""
    lines = []
    for line in text.splitlines():
        name = line.strip().partition("=")[0].strip()
        ours = name in ("kernel", "arm_64bit", "auto_initramfs", "ramfsfile", "cmdline")
        ours = ours or line.strip().startswith("initramfs ")
        lines.append(f"# for a start from a disk: {line}" if ours else line)
    lines += [
        "", "[all]", "# From here on by pxed: one kernel and its initramfs for every model.",
        "arm_64bit=1", f"kernel={kernel}", "auto_initramfs=0",
        f"initramfs {pi.INITRAMFS} followkernel", "",
    ]  # fmt: skip
    return "\n".join(lines)


def build_tree(
    destination: Path, boot: Path, *, initramfs: Path, cmdline: str, epoch: int | None = None
) -> None:
    """Write the new directory ``destination``; with ``epoch`` its files are all of that time."""
    kernel = kernel_name(boot)
    destination.mkdir()
    for name, source in _wanted(boot, kernel):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(initramfs, destination / pi.INITRAMFS)
    (destination / "config.txt").write_text(configuration(_config(boot), kernel))
    (destination / "cmdline.txt").write_text(cmdline + "\n")
    for folder, _, names in os.walk(destination, topdown=False):
        for each in names:
            os.chmod(os.path.join(folder, each), 0o644)
        os.chmod(folder, 0o755)  # noqa: S103 - anybody may have it by TFTP
        if epoch is not None:
            for path in (*(os.path.join(folder, each) for each in names), folder):
                os.utime(path, (epoch, epoch))


def _wanted(boot: Path, kernel: str) -> Iterator[tuple[str, Path]]:
    """Names and places of what the firmware reads; a symbolic link never leads out of ``boot``."""
    inside = ArmRoot(boot)
    names = [kernel]
    names += [p.name for p in boot.iterdir() if p.suffix in _FIRMWARE]
    for line in _config(boot).splitlines():
        if line.startswith("include "):
            names.append(line.removeprefix("include ").strip())
    overlays = inside.find("overlays")
    if overlays is not None and overlays.is_dir():
        names += [f"overlays/{p.name}" for p in overlays.iterdir() if p.suffix in _OVERLAYS]
    for name in sorted(set(names)):
        found = inside.find(name)
        if found is not None and found.is_file() and ".." not in Path(name).parts:
            yield name.lstrip("/"), found


def _config(boot: Path) -> str:
    found = ArmRoot(boot).find("config.txt")
    return found.read_text(errors="replace") if found is not None else ""


def build_disk(destination: Path, tree: Path, *, epoch: int | None = None) -> None:
    """The same files as a disk with one FAT32 partition: e17.0, or a card for a Pi without ROM.

    Its size is a multiple of 1 MiB; with ``epoch`` the same tree gives the same bytes.
    """
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    content = sum(-(-path.stat().st_size // 512) * 512 + 64 for path in files)
    room = -(-max(int(content * 1.03) + (2 << 20), _FAT32_LEAST + (2 << 20)) // (1 << 20)) << 20
    with destination.open("wb") as out:
        out.truncate(_START + room)
    table = f"label: dos\nlabel-id: {_ID}\nstart={_START // 512}, size={room // 512}, type=c\n"
    tool(
        ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(destination)],
        package="fdisk", stdin=table,
    )  # fmt: skip
    tool(
        [
            "mkfs.fat", "--invariant", "-F", "32", "-s", "1", "-n", "PXED", "-i", _ID[2:],
            "-h", str(_START // 512), "--offset", str(_START // 512), str(destination),
            str(room // 1024),
        ],
        package="dosfstools",
    )  # fmt: skip
    target = f"{destination}@@{_START}"
    folders = sorted({path.parent.relative_to(tree) for path in files} - {Path()})
    for folder in folders:
        tool(["mmd", "-i", target, f"::/{folder}"], package="mtools", epoch=epoch)
    for folder in (Path(), *folders):
        here = [str(path) for path in files if path.parent == tree / folder]
        argv = ["mcopy", "-i", target, "-m", *here, f"::/{folder}/" if folder.name else "::/"]
        tool(argv, package="mtools", epoch=epoch)
