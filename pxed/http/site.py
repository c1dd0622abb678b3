"""Which file or script an HTTP path stands for; nothing but known names. Sans-IO.

    /ipxe/snponly.efi             our iPXE, for UEFI HTTP boot
    /boot/lab@2026.11.ipxe        the script that loads this image's kernel
    /image/lab@2026.11/vmlinuz    and what it loads
    /image/pi@2026.11/pxed.efi    all of it in one program, for UEFI on ARM
    /tfm/lab@2026.11.ipxe         the same of maintenance mode
    /tfm/lab@2026.11/vmlinuz

No path is ever built from what a client said: a name is looked up, and is there or not.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pxed import scripts
from pxed.bootable import Kernel
from pxed.errors import UsageError
from pxed.images import Image

_SCRIPT = re.compile(r"/(boot|tfm)/([^/]+)\.ipxe")
_FILE = re.compile(r"/(image|tfm)/([^/]+)/([^/]+)")
_IPXE = "/ipxe/"
_EFI = "pxed.efi"


@dataclass(frozen=True, slots=True)
class Found:
    """What a path stands for: a file, or bytes."""

    path: Path | None = None
    content: bytes = b""


class Site:
    """``image_of``: NAME@VERSION to the image, UsageError if there is none; ``shelves`` by class.

    ``ipxe``: the directory with iPXE's programs, of which ``programs`` are served.
    """

    def __init__(
        self,
        image_of: Callable[[str], Image],
        shelves: Mapping[str, int],
        ipxe: Path,
        programs: Collection[str],
    ) -> None:
        self._image_of = image_of
        self._shelves = shelves
        self._programs = {f"{_IPXE}{name}": ipxe / name for name in programs}

    def find(self, path: str, base: str) -> Found | None:
        """What ``path`` stands for, or None; ``base`` is the server's URL for scripts."""
        if (program := self._programs.get(path)) is not None:
            return Found(program) if program.is_file() else None
        if (asked := _SCRIPT.fullmatch(path)) is not None:
            return self._script(asked[2], base, tfm=asked[1] == "tfm")
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


def efi_url(base: str, image: Image) -> str:
    """Where UEFI HTTP boot gets an image's kernel as one program."""
    return f"{base}/image/{image}/{_EFI}"


def _kernel(image: Image | None, *, tfm: bool) -> Kernel | None:
    if image is None:
        return None
    return image.maintenance if tfm else image.kernel
