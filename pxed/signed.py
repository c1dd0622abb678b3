"""The chain for Secure Boot: Debian's shim and GRUB, which firmware and each other believe.

Firmware loads shim, shim GRUB, GRUB asks for its configuration and loads a kernel that Debian has
signed, which is as far as signatures go: the initramfs and its disks are not looked at.
"""

from collections.abc import Mapping
from pathlib import Path

from pxed.bootable import Kernel
from pxed.mac import Mac

SHIM = "shimx64.efi"
_DEBIANS: Mapping[str, tuple[str, str]] = {
    SHIM: ("/usr/lib/shim/shimx64.efi.signed", "shim-signed"),
    "grubx64.efi": (
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        "grub-efi-amd64-signed",
    ),
}
"""The names under which they are asked for, where Debian has them, and its packages."""

PROGRAMS = frozenset(_DEBIANS)
"""What a machine of the chain has loaded when it asks for its configuration."""

CONFIGURATIONS = frozenset(("grub/x86_64-efi/grub.cfg", "grub/grub.cfg", "grub.cfg"))
"""What GRUB asks TFTP for."""

ARCHES = (7, 9)
"""Architecture numbers of x64 UEFI."""


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


def configuration(server: str, folder: str, kernel: Kernel, shelf: int, mac: Mac) -> bytes:
    """GRUB's, to load kernel and initrd from ``folder`` by TFTP: Debian's signed one has no HTTP.

    BOOTIF names the card that booted; the shelf is the server's.
    """
    words = [*kernel.cmdline.split(), f"pxed.shelf={shelf}", f"BOOTIF=01-{mac.replace(':', '-')}"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return (
        "set timeout=0\n"
        f"linux (tftp,{server})/{folder}/vmlinuz {quoted}\n"
        f"initrd (tftp,{server})/{folder}/initrd\n"
        "boot\n"
        f"{SORRY}"
    ).encode()


SORRY = """\
echo "pxed: this machine cannot boot; pxed client show $net_default_mac on the server tells more"
sleep 10
exit
"""
