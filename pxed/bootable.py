"""What of an image goes to firmware over TFTP and HTTP: kernel, initrd and a Pi's boot directory.

Optional keys of manifest.json; UsageError names the manifest, the key and what is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pxed.errors import UsageError

_LONGEST = 2000  # x86 takes 2047 bytes of command line; the server adds a few words


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that iPXE can load: two files of the image, and the kernel's command line."""

    vmlinuz: Path
    initrd: Path
    cmdline: str

    @property
    def files(self) -> Mapping[str, Path]:
        """What may be asked for, by its name in a URL."""
        return {"vmlinuz": self.vmlinuz, "initrd": self.initrd}


def kernel_of(manifest: Path, data: Mapping[str, Any], key: str = "kernel") -> Kernel | None:
    """The manifest's ``key``: {"vmlinuz": FILE, "initrd": FILE, "cmdline": TEXT}."""
    said = data.get(key)
    if said is None:
        return None
    if not isinstance(said, dict) or said.keys() != {"vmlinuz", "initrd", "cmdline"}:
        raise UsageError(f"{manifest}: {key}: must have vmlinuz, initrd and cmdline")
    cmdline = said["cmdline"]
    if not isinstance(cmdline, str) or not cmdline.isprintable() or len(cmdline) > _LONGEST:
        raise UsageError(
            f"{manifest}: {key}.cmdline = {cmdline!r}: must be one line of {_LONGEST} characters"
        )
    if "${" in cmdline or "||" in cmdline or "&&" in cmdline:
        raise UsageError(f"{manifest}: {key}.cmdline: ${{, || and && mean something to iPXE")
    vmlinuz, initrd = (_inside(manifest, f"{key}.{k}", said[k]) for k in ("vmlinuz", "initrd"))
    for path in (vmlinuz, initrd):
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file: the image is incomplete")
    return Kernel(vmlinuz, initrd, cmdline)


def tree_of(manifest: Path, data: Mapping[str, Any]) -> Path | None:
    """The manifest's ``tree`` key: the directory of the image that a Raspberry Pi boots from."""
    said = data.get("tree")
    if said is None:
        return None
    tree = _inside(manifest, "tree", said)
    if not tree.is_dir():
        raise UsageError(f"{tree}: there is no such directory: the image is incomplete")
    return tree


def efi_of(manifest: Path, data: Mapping[str, Any]) -> Path | None:
    """The manifest's ``efi`` key: kernel, initramfs and command line as one EFI program."""
    said = data.get("efi")
    if said is None:
        return None
    program = _inside(manifest, "efi", said)
    if not program.is_file():
        raise UsageError(f"{program}: there is no such file: the image is incomplete")
    return program


def _inside(manifest: Path, key: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{manifest}: {key} = {value!r}: must be a name in the image's directory")
    path = manifest.parent / value
    if not path.resolve().is_relative_to(manifest.parent.resolve()):
        raise UsageError(f"{manifest}: {key} = {value!r}: must lie in the image's own directory")
    return path
