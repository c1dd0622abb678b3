"""Initramfses that are not ours: what they are, and what lets them find their root over AoE.

A live system's own initramfs does what that system needs, so it stays; the kernel unpacks one
archive after the other, so what it lacks is appended (initramfs buffer format).
"""

import bz2
import lzma
import re
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.client.initramfs import add_modules, busybox, drivers, script
from pxed.client.kernel import Kernel
from pxed.errors import HostError, UsageError

_MAGIC = (b"070701", b"070702")
_PROGRAMS = {
    b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
_HOOK = "usr/lib/dracut/hooks/initqueue/settled/20-pxed.sh"
_LARGEST = 1 << 30  # of an archive, unpacked
KINDS = {
    "kiwi": ("sbin/kiwi-live-root",),
    "dracut": ("sbin/dmsquash-live-root",),
    "live-boot": ("bin/live-boot", "usr/bin/live-boot"),
}
"""Live systems that are known, by a file of their initramfs that no other has."""


@dataclass(frozen=True, slots=True)
class Initramfs:
    """What an initramfs holds: one of KINDS or empty, and whether it can do AoE by itself."""

    kind: str
    has_aoe: bool
    has_network: bool

    @property
    def loads_aoe(self) -> bool:
        """Whether it does AoE by itself. A dracut may have driver and network, and uses neither."""
        return self.kind == "kiwi" and self.has_aoe and self.has_network


def look(data: bytes, what: str) -> Initramfs:
    """What kind of initramfs ``data`` is; UsageError for what is none."""
    names = {name.removeprefix("./").lstrip("/") for name in _names(data, what)}
    plain = names | {name.removeprefix("usr/") for name in names}
    kind = next((k for k, marks in KINDS.items() if plain & set(marks)), "")
    aoe = any(re.search(r"/aoe\.ko(\.\w+)?$", name) for name in names)
    network = bool(plain & {"sbin/netroot", "lib/net-lib.sh"})
    return Initramfs(kind, aoe, network)


def _names(data: bytes, what: str) -> Iterator[str]:
    """The names in all archives of an initramfs, one after the other, packed or not."""
    found = False
    while data := data.lstrip(b"\0"):
        if not data.startswith(_MAGIC):
            data = _unpacked(data, what)
            if not data.startswith(_MAGIC):
                break
        at = 0
        while data[at : at + 6] in _MAGIC:
            found = True
            try:
                size, length = int(data[at + 54 : at + 62], 16), int(data[at + 94 : at + 102], 16)
            except ValueError:
                raise UsageError(f"{what}: is a damaged initramfs") from None
            name = data[at + 110 : at + 110 + length - 1].decode(errors="replace")
            at += 110 + length
            at += -at % 4 + size
            at += -at % 4
            if name == "TRAILER!!!":
                break
            yield name
        data = data[at:]
    if not found:
        raise UsageError(f"{what}: is no initramfs")


def _unpacked(data: bytes, what: str) -> bytes:
    """The archive that begins here, by its magic; what follows it is given up."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(data, _LARGEST)
        if data.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            return lzma.LZMADecompressor().decompress(data, _LARGEST)
        if data.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(data, _LARGEST)
        for magic, program in _PROGRAMS.items():
            if data.startswith(magic):
                done = subprocess.run(
                    [program, "-q", "-d", "-c"],
                    input=data, capture_output=True, timeout=120, check=False,
                )  # fmt: skip
                return done.stdout[:_LARGEST]  # what follows the archive is an error to it
    except FileNotFoundError as error:
        raise HostError(f"{error.filename} is missing: apt install {error.filename}") from None
    except (lzma.LZMAError, zlib.error, OSError):
        raise UsageError(f"{what}: is a damaged initramfs") from None
    return b""


def append_question(initrd: Path) -> None:
    """Append what has a dracut that knows AoE ask for its disks as soon as the link is up."""
    archive = Cpio()
    archive.file(_HOOK, script("foreign/discover.sh"), 0o755)
    _append(initrd, archive)


def append_aoe(initrd: Path, kernel: Kernel, kind: str) -> None:
    """Append what brings up the network and the AoE disks before the system looks for its root."""
    archive = Cpio()
    for name in ("dev", "proc", "sys", "run"):
        archive.directory(f"pxed/{name}")
    archive.file("pxed/bin/busybox", busybox().read_bytes(), 0o755)
    archive.symlink("pxed/bin/sh", "busybox")
    for name in ("functions.sh", "keep.sh"):
        archive.file(f"pxed/{name}", script(name))
    archive.file("pxed/aoe.sh", script("foreign/aoe.sh"))
    archive.file("pxed/start", script("foreign/start.sh"), 0o755)
    if kind == "live-boot":
        archive.file("scripts/pxed-live", script("foreign/live-boot.sh"))
    else:
        archive.file(_HOOK, script("foreign/dracut.sh"), 0o755)
    add_modules(archive, kernel, kernel.closure(["aoe", *drivers("modules")]), "pxed/")
    _append(initrd, archive)


def _append(initrd: Path, archive: Cpio) -> None:
    with initrd.open("ab") as out:
        out.write(b"\0" * (-out.tell() % 512))
        out.write(bytes(archive))
