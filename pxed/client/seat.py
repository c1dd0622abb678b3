"""What makes a seat of a root that knows nothing of us: kernel and initramfs beside it.

No program of the root runs here. Its kernel's files are copied into a directory of our own and
unpacked, and our initramfs is made of them; the root itself is changed in the seat's own layer, at
its first start (adopt.sh).
"""

import lzma
import re
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

from pxed.client.archive import Cpio
from pxed.client.debroot import FILES
from pxed.client.initramfs import MODULES, compressed, drivers, script, start_archive
from pxed.client.kernel import Kernel
from pxed.client.programs import add_programs
from pxed.client.tree import Tree
from pxed.errors import HostError, UsageError

_PACKED = (".xz", ".zst", ".gz")
_LARGEST = 64 << 20  # of a module, unpacked
_INDEXES = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
_FIRMWARE = re.compile(rb"\0firmware=([\w.+/-]{1,200})(?=\0)")
_FIRMWARE_ROOM = 16 << 20


def stage_kernel(tree: Tree, release: str, vmlinuz: Path, into: Path) -> Kernel:
    """Copy bzImage and all modules that seats and installer may need to the new directory ``into``.

    Unpacked, and with paths that lead nowhere else: the lists of a root from elsewhere are not
    trusted. UsageError for a kernel whose modules are not there.
    """
    kernel = Kernel(into, release)
    below = f"lib/modules/{release}"
    kernel.modules.mkdir(parents=True)
    kernel.vmlinuz.parent.mkdir()
    kernel.vmlinuz.write_bytes(vmlinuz.read_bytes())
    suffixes: dict[str, str] = {}
    lines = []
    for line in tree.read(f"{below}/modules.dep", 32 << 20).decode(errors="replace").splitlines():
        words = [word.rstrip(":") for word in line.split()]
        if any(word.startswith("/") or ".." in word.split("/") for word in words):
            continue
        plain = [_plain(word) for word in words]
        suffixes.update(zip(plain, words, strict=True))
        lines.append(f"{plain[0]}: {' '.join(plain[1:])}\n" if plain else "")
    (kernel.modules / "modules.dep").write_text("".join(lines))
    for name in _INDEXES:
        if data := tree.read(f"{below}/{name}", 32 << 20):
            (kernel.modules / name).write_bytes(data)
    for file in kernel.closure([*drivers("modules"), *drivers("disks"), *MODULES]):
        packed = suffixes[str(file)]
        data = tree.read(f"{below}/{packed}", _LARGEST)
        if not data:
            raise UsageError(f"kernel {release}: {packed} is missing or empty: is it damaged?")
        target = kernel.modules / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(unpacked(packed, data))
    return kernel


def _plain(name: str) -> str:
    return next((name.removesuffix(end) for end in _PACKED if name.endswith(end)), name)


def unpacked(name: str, data: bytes) -> bytes:
    """``data`` of a file called ``name``, without its .xz, .zst or .gz; HostError if damaged."""
    try:
        if name.endswith(".xz"):
            xz = lzma.LZMADecompressor()
            return _whole(xz.decompress(data, _LARGEST), xz.eof)
        if name.endswith(".gz"):
            gz = zlib.decompressobj(31)
            return _whole(gz.decompress(data, _LARGEST), gz.eof)
        if name.endswith(".zst"):
            return subprocess.run(
                ["zstd", "-q", "-d", "-c"], input=data, capture_output=True, check=True, timeout=60
            ).stdout
    except FileNotFoundError:
        raise HostError("zstd is missing: apt install zstd") from None
    except (lzma.LZMAError, zlib.error, EOFError, subprocess.CalledProcessError):
        raise UsageError(f"{name} is damaged: it cannot be unpacked") from None
    return data


def _whole(data: bytes, ended: bool) -> bytes:
    if not ended:
        raise EOFError
    return data


def seat_initramfs(
    kernel: Kernel, tree: Tree, destination: Path, *, image: str, disks: bool = False
) -> None:
    """Write the initramfs that makes ``image`` of the root ``tree``; ``disks``: from a local disk.

    HostError if a needed program is missing here.
    """
    names = [*drivers("modules"), *(drivers("disks") if disks else [])]
    archive = start_archive(kernel, names)
    archive.file("keep.sh", script("keep.sh"))
    add_programs(archive, {"e2fsck": "e2fsprogs"})
    add_adoption(archive, image)
    _add_firmware(archive, kernel, tree, names)
    destination.write_bytes(compressed(bytes(archive)))


def add_adoption(archive: Cpio, image: str) -> None:
    """What makes a seat of an untouched root, in the seat's own layer, at its first start."""
    archive.file("adopt/adopt.sh", script("adopt.sh"))
    archive.file("adopt/image", f"{image}\n".encode())
    for name, place, mode in FILES:
        if place.startswith(("usr/sbin/", "usr/lib/systemd/", "usr/share/pxed/state.sh")):
            archive.file(f"adopt/files/{place}", script(name), mode)


def _add_firmware(archive: Cpio, kernel: Kernel, tree: Tree, names: Sequence[str]) -> None:
    """What the drivers ask for, as far as the root has it; a card without is a card that fails."""
    wanted: dict[str, None] = {}
    for file in kernel.closure(names):
        found = _FIRMWARE.findall((kernel.modules / file).read_bytes())
        wanted.update(dict.fromkeys(name.decode() for name in found))
    room = _FIRMWARE_ROOM
    for name in wanted:
        for end in ("", *_PACKED):
            data = tree.read(f"lib/firmware/{name}{end}", _FIRMWARE_ROOM)
            if data and ".." not in name.split("/"):
                data = unpacked(f"{name}{end}", data)
                room -= len(data)
                if room > 0:
                    archive.file(f"lib/firmware/{name}", data)
                break
