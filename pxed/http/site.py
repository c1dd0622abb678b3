"""Which file or script an HTTP path stands for; nothing but known names. Sans-IO.

    /ipxe/snponly.efi             our iPXE, for UEFI HTTP boot
    /ipxe/autoexec.ipxe           what that asks for as it starts
    /boot/lab@2026.11.ipxe        the script that loads this image's kernel
    /image/lab@2026.11/vmlinuz    and what it loads
    /image/pi@2026.11/pxed.efi    all of it in one program, for UEFI on ARM
    /tfm/lab@2026.11.ipxe         the same of maintenance mode
    /tfm/lab@2026.11/vmlinuz
    /secure/52-54-00-00-00-01/lab@2026.11.img    a disk for this machine, for Secure Boot
    /secure-tfm/52-54-00-00-00-01/lab@2026.11.img

No path is ever built from what a client said: a name is looked up, and is there or not.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pxed import ipxe, scripts, signed
from pxed.bootable import Kernel
from pxed.errors import UsageError
from pxed.http.fatdisk import FatDisk
from pxed.images import Image
from pxed.mac import Mac, parse_mac

_SCRIPT = re.compile(r"/(boot|tfm)/([^/]+)\.ipxe")
_FILE = re.compile(r"/(image|tfm)/([^/]+)/([^/]+)")
_DISK = re.compile(r"/secure(-tfm)?/([0-9a-f]{2}(?:-[0-9a-f]{2}){5})/([^/]+)\.img", re.ASCII)
_IPXE = "/ipxe/"
_EFI = "pxed.efi"


@dataclass(frozen=True, slots=True)
class Found:
    """What a path stands for: a file, a disk, or bytes."""

    path: Path | None = None
    content: bytes = b""
    disk: FatDisk | None = None


class Site:
    """``image_of``: NAME@VERSION to the image, UsageError if there is none; ``shelves`` by class.

    ``root``: the directory with iPXE's programs, of which ``programs`` are served.
    """

    def __init__(
        self,
        image_of: Callable[[str], Image],
        shelves: Mapping[str, int],
        root: Path,
        programs: Collection[str],
    ) -> None:
        self._image_of = image_of
        self._shelves = shelves
        self._root = root
        self._programs = {f"{_IPXE}{name}": ipxe.program(root, name) for name in programs}

    def find(self, path: str, base: str) -> Found | None:
        """What ``path`` stands for, or None; ``base`` is the server's URL for scripts."""
        if (program := self._programs.get(path)) is not None:
            return Found(program) if program.is_file() else None
        if path == f"{_IPXE}{scripts.AUTOEXEC}":
            own = ipxe.script(self._root)
            return Found(self._root / scripts.AUTOEXEC) if own is None else Found(content=own)
        if (asked := _SCRIPT.fullmatch(path)) is not None:
            return self._script(asked[2], base, tfm=asked[1] == "tfm")
        if (asked := _DISK.fullmatch(path)) is not None:
            return self._disk(parse_mac(asked[2].replace("-", ":")), asked[3], tfm=bool(asked[1]))
        if (asked := _FILE.fullmatch(path)) is not None:
            image, tfm = self._image(asked[2]), asked[1] == "tfm"
            kernel = _kernel(image, tfm=tfm)
            if kernel is not None and asked[3] in kernel.files:
                return Found(kernel.files[asked[3]])
            if image is not None and image.efi is not None and asked[3] == _EFI and not tfm:
                return Found(image.efi)
        return None

    def _script(self, spec: str, base: str, *, tfm: bool) -> Found | None:
        image = self._image(spec)
        kernel = _kernel(image, tfm=tfm)
        if image is None or kernel is None or image.class_name not in self._shelves:
            return None
        folder = "tfm" if tfm else "image"
        shelf = self._shelves[image.class_name]
        return Found(content=scripts.kernel(f"{base}/{folder}/{spec}", kernel, shelf))

    def _disk(self, mac: Mac, spec: str, *, tfm: bool) -> Found | None:
        image = self._image(spec)
        kernel = _kernel(image, tfm=tfm)
        if image is None or kernel is None or image.class_name != "x86":
            return None
        if "x86" not in self._shelves or signed.missing(self._root):
            return None
        try:
            return Found(disk=FatDisk(signed.disk(self._root, kernel, self._shelves["x86"], mac)))
        except UsageError:
            return None

    def _image(self, spec: str) -> Image | None:
        try:
            return self._image_of(spec) if "@" in spec else None
        except UsageError:
            return None


def program_url(base: str, name: str) -> str:
    """Where UEFI HTTP boot gets a program of iPXE's."""
    return f"{base}{_IPXE}{name}"


def script_url(base: str, image: Image, *, tfm: bool = False) -> str:
    """Where iPXE gets the script that loads an image's kernel, or maintenance mode's (``tfm``)."""
    return f"{base}/{'tfm' if tfm else 'boot'}/{image}.ipxe"


def disk_url(base: str, image: Image, mac: Mac, *, tfm: bool = False) -> str:
    """Where UEFI HTTP boot gets this machine's disk of the signed chain."""
    return f"{base}/secure{'-tfm' if tfm else ''}/{mac.replace(':', '-')}/{image}.img"


def efi_url(base: str, image: Image) -> str:
    """Where UEFI HTTP boot gets an image's kernel as one program."""
    return f"{base}/image/{image}/{_EFI}"


def _kernel(image: Image | None, *, tfm: bool) -> Kernel | None:
    if image is None:
        return None
    return image.maintenance if tfm else image.kernel
