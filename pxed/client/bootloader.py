"""The boot loader of an installed disk: GRUB for BIOS and UEFI, written there by the installer.

Nothing is installed on the target but bytes at fixed places: boot.img in the first sector, core.img
in the BIOS boot partition, an EFI system partition with GRUB and its one configuration file, and
the tar archive that holds the state (installer/state.sh).
"""

import gzip
import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

from pxed.client.imagedir import dated
from pxed.client.initramfs import script
from pxed.errors import HostError, UsageError

BIOS_START = 2048
"""First sector of the BIOS boot partition, on every disk (installer/install.sh)."""
ESP_MIB = 8
NET_PROGRAM = "EFI/PXED/NET.EFI"
"""GRUB in the EFI system partition for an iPXE that was told to go on to the disk: it looks for its
partition itself, for it was not the firmware that loaded it from there."""
_LIBRARY = Path("/usr/lib/grub")
_MODULES = (
    "part_gpt", "fat", "tar", "loadenv", "regexp", "linux", "normal", "test", "echo", "sleep",
    "reboot", "configfile", "search_fs_file",
)  # fmt: skip
_STATE_BYTES = 1024  # GRUB's own size of an environment block
_KERNEL_SECTOR = 0x5C  # in boot.img: where core.img begins
_DRIVE_CHECK = 0x66  # in boot.img: a jump that two no-ops make trust what the BIOS says
_BLOCK_LIST = 500  # in core.img's first sector: where the rest of it begins


def build_loader(directory: Path, epoch: int | None = None) -> dict[str, bytes]:
    """Files for the installer, by name; ``directory`` is for what is made on the way.

    HostError if GRUB's files or a program is missing. The same versions give the same bytes.
    """
    boot, core = _bios(directory)
    return {
        "boot.img": boot,
        "core.img": core,
        "esp.img.gz": gzip.compress(_esp(directory, epoch), 9, mtime=0),
        "esp.mib": f"{ESP_MIB}\n".encode(),
        "state": empty_state(),
    }


def empty_state() -> bytes:
    """The state of a disk on which nothing is installed yet: a tar archive with one file."""
    head = b"# GRUB Environment Block\n"
    return archive({"env": head.ljust(_STATE_BYTES, b"#")})


def archive(files: dict[str, bytes]) -> bytes:
    """A tar archive that GRUB reads as a file system; without times or owners, in 4 KiB blocks.

    The first file's data begin at byte 512.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    data = out.getvalue()
    return data + b"\0" * (-len(data) % 4096)


def _bios(directory: Path) -> tuple[bytes, bytes]:
    core = directory / "core.img"
    _grub("i386-pc", core, "biosdisk")
    source = _LIBRARY / "i386-pc/boot.img"
    boot = bytearray(source.read_bytes())
    rest = bytearray(core.read_bytes())
    if len(boot) != 512 or len(rest) > 1 << 20:
        raise HostError(f"{source} is not the boot.img that is known: reinstall grub-pc-bin")
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, BIOS_START)
    boot[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    struct.pack_into("<Q", rest, _BLOCK_LIST, BIOS_START + 1)
    return bytes(boot), bytes(rest)


def _esp(directory: Path, epoch: int | None) -> bytes:
    program, net, config, disk = (
        directory / name for name in ("grub.efi", "net.efi", "grub.cfg", "esp.img")
    )
    # Without a driver for the screen a kernel starts with a dark one.
    _grub("x86_64-efi", program, "efi_gop", "efi_uga")
    early = directory / "early.cfg"
    early.write_text(f"search.file /{NET_PROGRAM} root\nset prefix=($root)/\n")
    _grub("x86_64-efi", net, "-c", str(early), "efi_gop", "efi_uga")
    config.write_bytes(script("installer/grub.cfg"))
    if epoch is not None:
        for path in (program, net, config):
            os.utime(path, (epoch, epoch))
    with disk.open("wb") as out:
        out.truncate(ESP_MIB << 20)
    # FAT16, which every firmware reads: small clusters, so that there are enough of them.
    make = ["mkfs.fat", "--invariant", "-F", "16", "-s", "1", "-n", "PXED", str(disk)]
    _tool(make, "dosfstools", epoch)
    _tool(["mmd", "-i", str(disk), "::/EFI", "::/EFI/BOOT", "::/EFI/PXED"], "mtools", epoch)
    files = {"EFI/BOOT/BOOTX64.EFI": program, NET_PROGRAM: net, "grub.cfg": config}
    for name, path in files.items():
        _tool(["mcopy", "-i", str(disk), "-m", str(path), f"::/{name}"], "mtools", epoch)
    return disk.read_bytes()


def _grub(platform: str, target: Path, *more: str) -> None:
    """``more``: options of grub-mkimage, then modules beside those of both platforms."""
    if not (_LIBRARY / platform).is_dir():
        package = "grub-pc-bin" if platform == "i386-pc" else "grub-efi-amd64-bin"
        raise HostError(f"{_LIBRARY / platform} is missing: apt install {package}")
    # The prefix names the EFI partition of whatever disk this was loaded from.
    _tool(
        ["grub-mkimage", "-O", platform, "-p", "(,gpt2)/", "-o", str(target), *more, *_MODULES],
        "grub-common",
        None,
    )


def _tool(argv: list[str], package: str, epoch: int | None) -> None:
    env = {**dated(epoch), "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C", "TZ": "UTC"}
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60, env=env)
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is missing: apt install {package}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} hangs: is the disk full or very slow?") from None
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip() or "no reason given").splitlines()[-1]
        raise HostError(f"{argv[0]} failed: {why}") from None


def slot_config(cmdline: str) -> bytes:
    """What GRUB does with one system: grub.cfg beside its kernel, read by installer/grub.cfg.

    UsageError for a command line that GRUB cannot be told.
    """
    if "'" in cmdline:
        raise UsageError(f"kernel command line {cmdline!r}: must not have an apostrophe")
    words = " ".join(f"'{word}'" for word in cmdline.split())
    return (
        f'linux "($boot)/vmlinuz" panic=20 {words} "pxed.local=$id" "pxed.slot=$slot"\n'
        'initrd "($boot)/initrd"\n'
    ).encode()
