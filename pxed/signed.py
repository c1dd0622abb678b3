"""The chain for Secure Boot: Debian's shim and GRUB, which firmware and each other believe.

Firmware loads shim, shim GRUB, GRUB asks for its configuration and loads a kernel that Debian has
signed, which is as far as signatures go: the initramfs and its disks are not looked at.

By PXE each of them asks TFTP for the next. By UEFI's HTTP boot that ends at GRUB, whose signed
build has no HTTP; so the firmware gets a disk with all of them, which it keeps in memory.
"""

from collections.abc import Mapping
from pathlib import Path

from pxed.bootable import Kernel
from pxed.mac import Mac

SHIM, GRUB = "shimx64.efi", "grubx64.efi"
_DEBIANS: Mapping[str, tuple[str, str]] = {
    SHIM: ("/usr/lib/shim/shimx64.efi.signed", "shim-signed"),
    GRUB: (
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        "grub-efi-amd64-signed",
    ),
}
"""The names under which they are asked for, where Debian has them, and its packages."""

PROGRAMS = frozenset(_DEBIANS)
"""What a machine of the chain has loaded when it asks for its configuration."""

CONFIGURATIONS = frozenset(("grub/x86_64-efi/grub.cfg", "grub/grub.cfg", "grub.cfg"))
"""What GRUB asks TFTP for."""

ARCHES, HTTP_ARCH = (7, 9), 16
"""Architecture numbers of x64 UEFI, and of its HTTP boot."""


def files() -> dict[str, Path]:
    """What is served beside a directory of programs that has none of these names."""
    return {name: Path(path) for name, (path, _) in _DEBIANS.items()}


def program(root: Path, name: str) -> Path:
    """Where one of them is, or should be: one in ``root`` comes first."""
    own = root / name
    return own if own.exists() else Path(_DEBIANS[name][0])


def missing(root: Path) -> str:
    """What has to be installed, in words; empty if all is there."""
    lacks = [each for name, each in _DEBIANS.items() if not program(root, name).is_file()]
    if not lacks:
        return ""
    paths, packages = (" and ".join(words) for words in zip(*lacks, strict=True))
    return f"{paths} missing: install Debian's {packages}"


def disk(root: Path, kernel: Kernel, shelf: int, mac: Mac) -> dict[str, bytes | Path]:
    """What is on the disk for UEFI's HTTP boot, by its path there."""
    return {
        "EFI/BOOT/BOOTX64.EFI": program(root, SHIM),
        "EFI/BOOT/GRUBX64.EFI": program(root, GRUB),
        "GRUB/GRUB.CFG": configuration("", kernel, shelf, mac),
        "VMLINUZ": kernel.vmlinuz,
        "INITRD": kernel.initrd,
    }


def configuration(folder: str, kernel: Kernel, shelf: int, mac: Mac) -> bytes:
    """GRUB's, to load kernel and initrd from ``folder``, on a server or on the disk it came from.

    BOOTIF names the card that booted; the shelf is the server's.
    """
    words = [*kernel.cmdline.split(), f"pxed.shelf={shelf}", f"BOOTIF=01-{mac.replace(':', '-')}"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return (
        "set timeout=0\n"
        f"linux {folder}/vmlinuz {quoted}\n"
        f"initrd {folder}/initrd\n"
        "boot\n"
        f"{sorry(mac)}"
    ).encode()


def by_tftp(server: str, folder: str) -> str:
    """A folder of ours as GRUB calls it."""
    return f"(tftp,{server})/{folder}"


def sorry(mac: Mac | None) -> str:
    """What GRUB says where there is nothing to boot; then the firmware goes on."""
    who = mac or "$net_default_mac"
    return (
        f'echo "pxed: this machine cannot boot; pxed client show {who} on the server tells more"\n'
        "sleep 10\n"
        "exit\n"
    )
