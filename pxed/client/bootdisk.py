"""The boot disk of an image: one GPT disk that starts the same kernel on BIOS and on UEFI.

BIOS: gptmbr.bin looks for the partition marked "legacy BIOS bootable" and starts syslinux in it.
UEFI: the same partition is the EFI system partition, and \\EFI\\BOOT\\BOOTX64.EFI in it is one file
with kernel, initramfs and command line (a unified kernel image). Nothing is mounted and nothing
needs root.
"""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pxed.client.imagedir import dated
from pxed.errors import HostError

_GPTMBR = Path("/usr/lib/SYSLINUX/gptmbr.bin")
_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_START = 1 << 20  # of the partition, in bytes
_TAIL = 1 << 20  # room for the second GPT
_DISK_ID = "70786564-0000-4000-8000-000000000000"  # every boot disk is the same one to a client
_PART_ID = "70786564-0000-4000-8000-000000000001"
_CLUSTER = 8192
_FAT16_LEAST = 4200 * _CLUSTER  # with fewer clusters a FAT is a FAT12, which firmware may refuse


def build_bootdisk(
    destination: Path,
    *,
    vmlinuz: Path,
    initrd: Path,
    cmdline: str,
    parts: Sequence[tuple[str, Path]] = (),
    epoch: int | None = None,
) -> None:
    """Write the disk; its size is a multiple of 1 MiB. HostError if a program is missing.

    ``parts``: names and contents of further partitions, each from a MiB on.

    With ``epoch``, a date in seconds since 1970, the same files give the same bytes.
    """
    check_tools()
    with tempfile.TemporaryDirectory(prefix="pxed-boot-", dir=destination.parent) as name:
        work = Path(name)
        unified = work / "BOOTX64.EFI"
        unified_image(unified, vmlinuz=vmlinuz, initrd=initrd, cmdline=cmdline)
        config = work / "syslinux.cfg"
        config.write_text(
            "DEFAULT pxed\nPROMPT 0\nTIMEOUT 0\nLABEL pxed\n"
            f"  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND {cmdline}\n"
        )
        files = {
            "vmlinuz": vmlinuz,
            "initrd": initrd,
            "syslinux.cfg": config,
            "EFI/BOOT/BOOTX64.EFI": unified,
        }
        disk = work / "disk"
        if epoch is not None:
            for path in (config, unified):
                os.utime(path, (epoch, epoch))
        _partition(disk, sum(path.stat().st_size for path in files.values()), parts)
        _fill(disk, files, epoch)
        disk.replace(destination)


def check_tools() -> None:
    """HostError that names every package which ``build_bootdisk`` would miss."""
    wanted = {
        package: shutil.which(program) is not None
        for program, package in (
            ("mcopy", "mtools"), ("mkfs.fat", "dosfstools"), ("sfdisk", "fdisk"),
            ("objcopy", "binutils"), ("syslinux", "syslinux"),
        )
    } | {"syslinux-common": _GPTMBR.is_file(), "systemd-boot-efi": _STUB.is_file()}  # fmt: skip
    if missing := [package for package, there in wanted.items() if not there]:
        raise HostError(f"a boot disk cannot be made: apt install {' '.join(missing)}")


def unified_image(destination: Path, *, vmlinuz: Path, initrd: Path, cmdline: str) -> None:
    """Write an EFI program that is kernel, initramfs and command line in one file."""
    with tempfile.TemporaryDirectory(prefix="pxed-uki-", dir=destination.parent) as name:
        text = Path(name) / "cmdline"
        text.write_text(cmdline)
        argv = ["objcopy", "--preserve-dates"]  # the stub's, also inside the program
        address = _image_end(_STUB.read_bytes())
        for section, path in ((".cmdline", text), (".initrd", initrd), (".linux", vmlinuz)):
            argv += ["--add-section", f"{section}={path}"]
            argv += ["--change-section-vma", f"{section}={address:#x}"]
            address = _align(address + path.stat().st_size, 1 << 16)
        tool([*argv, str(_STUB), str(destination)], package="binutils")


def _image_end(program: bytes) -> int:
    """The first free address behind all sections of a PE32+ program, as objcopy counts them."""
    (header,) = struct.unpack_from("<I", program, 0x3C)
    if program[header : header + 4] != b"PE\0\0":
        raise HostError(f"{_STUB} is no EFI program: reinstall systemd-boot-efi")
    (sections,) = struct.unpack_from("<H", program, header + 6)
    (optional,) = struct.unpack_from("<H", program, header + 20)
    (base,) = struct.unpack_from("<Q", program, header + 24 + 24)
    end = 0
    for index in range(sections):
        size, address = struct.unpack_from("<II", program, header + 24 + optional + 40 * index + 8)
        end = max(end, address + size)
    return int(base + _align(end, 1 << 16))


def _partition(disk: Path, content: int, parts: Sequence[tuple[str, Path]]) -> None:
    """A disk with one empty FAT16 partition with room for ``content`` bytes, and with ``parts``."""
    room = _align(max(int(content * 1.02) + (1 << 20), _FAT16_LEAST), 1 << 20)
    table, end = "", _START + room
    with disk.open("wb") as out:
        for number, (name, path) in enumerate(parts, 2):
            size = _align(path.stat().st_size, 1 << 20)
            out.seek(end)
            with path.open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
            table += f"start={end // 512}, size={size // 512}, type=linux, name={name}, "
            table += f"uuid={_PART_ID[:-1]}{number}\n"
            end += size
        out.truncate(end + _TAIL)
    tool(
        ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(disk)],
        package="fdisk",
        stdin=f"label: gpt\nlabel-id: {_DISK_ID}\n"
        f"start={_START // 512}, size={room // 512}, type=uefi, name=boot, uuid={_PART_ID}, "
        f'attrs="LegacyBIOSBootable"\n{table}',
    )
    tool(
        [
            "mkfs.fat", "--invariant", "-F", "16", "-s", str(_CLUSTER // 512), "-n", "PXED",
            "-i", "70786564", "-h", str(_START // 512), "--offset", str(_START // 512),
            str(disk), str(room // 1024),
        ],
        package="dosfstools",
    )  # fmt: skip
    with disk.open("r+b") as out:
        out.write(_GPTMBR.read_bytes()[:440])


def _fill(disk: Path, files: dict[str, Path], epoch: int | None) -> None:
    target = f"{disk}@@{_START}"
    folders: dict[str, None] = {}
    for name in files:
        parts = name.split("/")[:-1]
        folders.update(dict.fromkeys("/".join(parts[: n + 1]) for n in range(len(parts))))
    if folders:
        tool(
            ["mmd", "-i", target, *(f"::/{folder}" for folder in folders)],
            package="mtools",
            epoch=epoch,
        )
    for name, path in files.items():
        # The file's own time, or that of ``epoch``.
        keep = ["-m"] if epoch is None else []
        argv = ["mcopy", "-i", target, *keep, str(path), f"::/{name}"]
        tool(argv, package="mtools", epoch=epoch)
    install = ["syslinux", "--install", "--offset", str(_START), str(disk)]
    tool(install, package="syslinux", epoch=epoch)


def _align(value: int, step: int) -> int:
    return -(-value // step) * step


def tool(argv: Sequence[str], *, package: str, stdin: str = "", epoch: int | None = None) -> None:
    """Run a program of ``package``; HostError with its last words. ``epoch``: its time."""
    try:
        subprocess.run(
            argv,
            input=stdin,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**dated(epoch), "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C", "TZ": "UTC"},
        )
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is missing: apt install {package}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} hangs: is the disk full or very slow?") from None
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip() or error.stdout.strip() or "no reason given").splitlines()[-1]
        raise HostError(f"{argv[0]} failed: {why}") from None
