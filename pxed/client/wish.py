"""What an operator asks of an import."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pxed.client.debian import COMPRESSIONS
from pxed.errors import UsageError

FORMATS = ("auto", "keep", "squashfs", "erofs")
INITRAMFS = ("auto", "ours", "its")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for; what is empty or None is found out."""

    name: str
    version: str
    released: str
    shelf: int = 16
    root_part: int | None = None
    boot_part: int | None = None
    kernel: str = ""
    cmdline: str = ""
    root_format: str = "auto"
    compression: str = "zstd"
    exclude: tuple[str, ...] = ()
    initramfs: str = "auto"
    maintenance: bool = True

    @property
    def packed(self) -> str:
        """What a root becomes that cannot stay as it is."""
        return "erofs" if self.root_format == "erofs" else "squashfs"

    def check(self) -> None:
        """UsageError for what cannot be meant."""
        if self.root_format not in FORMATS:
            raise UsageError(f"{self.root_format!r}: the format is one of {', '.join(FORMATS)}")
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"{self.compression!r}: is one of {', '.join(COMPRESSIONS)}")
        if self.initramfs not in INITRAMFS:
            raise UsageError(f"{self.initramfs!r}: the initramfs is {', '.join(INITRAMFS)}")
        if not re.fullmatch(r"[\w.+~-]*", self.kernel, re.ASCII):
            raise UsageError(f"{self.kernel!r} is no kernel release: ls /lib/modules")
        for path in self.exclude:
            parts = path.split("/")
            if not path.startswith("/") or path == "/" or ".." in parts or not path.isprintable():
                raise UsageError(f"--exclude {path!r}: must be an absolute path below /")
        if not self.cmdline.isprintable():
            raise UsageError("--cmdline: must be one line")
