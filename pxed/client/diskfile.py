"""A disk image file: which format it has, by its own first bytes, and the same as a raw file.

An image from elsewhere may name other files: a backing file, an external data file, extents. A
program that follows such a name reads files of this machine into the image. So nothing is given to
qemu-img that was not looked at here first, and it is told the format rather than left to guess it.
"""

import fcntl
import json
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from pxed.errors import HostError, UsageError

FORMATS = ("qcow2", "vmdk", "vdi", "vhdx", "vpc")
"""What qemu-img converts for us, by qemu's names."""
_PACKED = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2",
    b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z",
}  # fmt: skip
_CONVERT = "convert it first: qemu-img convert -O qcow2"
_ISO = 0x8001  # ECMA-119: the first volume descriptor's name, CD001
_PERCENT = re.compile(rb"\((\d+)[.,]\d+/100%\)")

Progress = Callable[[str], None]


def format_of(path: Path) -> str:
    """``raw``, ``iso`` or one of FORMATS; UsageError for what cannot be taken, with what to do."""
    with path.open("rb") as file:
        size = os.lseek(file.fileno(), 0, os.SEEK_END)
        head = os.pread(file.fileno(), 64 << 10, 0)
        foot = os.pread(file.fileno(), 512, max(size - 512, 0))
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise UsageError(f"{path}: is packed with {name}: unpack it first")
    if head[257:262] == b"ustar":
        raise UsageError(f"{path}: is a tar archive: unpack it, and import what is in it")
    if head.startswith(b"QFI\xfb"):
        _check_qcow2(path, head, size)
        return "qcow2"
    if head.startswith(b"KDMV"):
        _check_vmdk(path, head)
        return "vmdk"
    if head.startswith((b"COWD", b"QED\0")) or head.lstrip().startswith(b"# Disk DescriptorFile"):
        raise UsageError(f"{path}: this format can name other files: {_CONVERT}")
    if head.startswith(b"vhdxfile"):
        return "vhdx"  # qemu itself refuses one that has a parent
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if b"conectix" in (head[:8], foot[:8]):
        _check_vpc(path, head if head.startswith(b"conectix") else foot)
        return "vpc"
    if head[_ISO : _ISO + 5] == b"CD001":
        return "iso"
    return "raw"


def _check_qcow2(path: Path, head: bytes, size: int) -> None:
    """QEMU's docs/interop/qcow2.txt: nothing may lead out of the file."""
    refused = UsageError(f"{path}: is no sound qcow2 file")
    head = head.ljust(40, b"\0") if len(head) < 40 else head
    version, backing, backing_size = struct.unpack_from(">IQI", head, 4)
    (crypt,) = struct.unpack_from(">I", head, 32)
    if len(head) < 104:
        raise refused
    if version not in (2, 3):
        raise UsageError(f"{path}: is qcow2 of version {version}: {_CONVERT}")
    # qemu-img reads zeros behind the end of a file, and finds an empty table there quite sound.
    entries, table = struct.unpack_from(">IQ", head, 36)
    if table + 8 * entries > size:
        raise UsageError(f"{path}: is damaged or cut off: fetch it again")
    features, at = 0, 72
    if version == 3:
        (features,) = struct.unpack_from(">Q", head, 72)
        (at,) = struct.unpack_from(">I", head, 100)
    if backing or backing_size:
        raise UsageError(
            f"{path}: is a layer over another file, which is not read: {_CONVERT} makes one of both"
        )
    if features & 4:
        raise UsageError(f"{path}: its data lie in another file, which is not read: {_CONVERT}")
    if features & 2:
        raise UsageError(f"{path}: says that it is damaged: qemu-img check -r all {path}")
    if crypt:
        raise UsageError(f"{path}: is encrypted: {_CONVERT} with its key")
    while True:
        if at + 8 > len(head):
            raise refused
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0:
            return
        if kind in (0x44415441, 0xE2792ACA):  # name of a data file; format of a backing file
            raise UsageError(f"{path}: names another file, which is not read: {_CONVERT}")
        at += 8 + -(-length // 8) * 8


def _check_vmdk(path: Path, head: bytes) -> None:
    """One file with its own data: no descriptor that names extents, no parent."""
    (capacity,) = struct.unpack_from("<Q", head, 12)
    first, sectors = struct.unpack_from("<QQ", head, 28)
    begin, end = first * 512, (first + sectors) * 512
    if not capacity or end > len(head):
        raise UsageError(f"{path}: this kind of VMDK can name other files: {_CONVERT}")
    # qemu looks for a parent in the sectors from 0x200 on, wherever the descriptor is.
    for text in (head[begin:end], head[0x200 : 0x200 + 20 * 512]):
        if b"parentFileNameHint" in text:
            raise UsageError(f"{path}: is a layer over another file, which is not read: {_CONVERT}")


def _check_vpc(path: Path, footer: bytes) -> None:
    (kind,) = struct.unpack_from(">I", footer, 60)
    if kind not in (2, 3):  # fixed, dynamic; 4 is differencing
        raise UsageError(f"{path}: is a layer over another file, which is not read: {_CONVERT}")


def check_idle(path: Path) -> None:
    """UsageError if somebody may write to this file or block device meanwhile."""
    about = path.stat()
    if stat.S_ISBLK(about.st_mode):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != 16:  # EBUSY
                raise HostError(f"{path}: {error.strerror}") from None
            raise UsageError(
                f"{path}: is in use, mounted or part of something else: unmount it first, or "
                "import a snapshot of it"
            ) from None
        return
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            same = os.path.samefile(loop.read_text().rstrip("\n"), path)
            writable = (loop.parents[1] / "ro").read_text().strip() == "0"
        except OSError:
            continue
        if same and writable:
            raise UsageError(
                f"{path}: is in use as /dev/{loop.parents[1].name}: losetup --detach it first"
            )
    with path.open("rb") as file:
        # qemu holds a lock on this byte while it may write (its block/file-posix.c: 100 + "write").
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 101, 1, 0)
        said = struct.unpack("hhqqi4x", fcntl.fcntl(file.fileno(), 36, asked))  # F_OFD_GETLK
    if said[0] != fcntl.F_UNLCK:
        raise UsageError(f"{path}: is the disk of a machine that runs: shut it down first")


def to_raw(path: Path, kind: str, target: Path, progress: Progress) -> None:
    """Write a disk of one of FORMATS as the raw file ``target``, with holes where it is empty.

    HostError if qemu-img is missing or fails, or if there is no room.
    """
    if shutil.which("qemu-img") is None:
        raise HostError("qemu-img is missing: apt install qemu-utils")
    before = _identity(path)
    source = "json:" + json.dumps(
        {"driver": kind, "file": {"driver": "file", "filename": str(path.absolute())}}
        | ({"backing": None} if kind in ("qcow2", "vmdk") else {})
    )
    _check(source, path)
    measured = _run(["qemu-img", "measure", "-O", "raw", "--output", "json", source], path)
    needed = int(json.loads(measured)["required"])
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise HostError(
            f"{target.parent.parent}: only {free >> 20} MiB are free, and {path.name} unpacked has "
            f"{needed >> 20} MiB: free some space, or choose another state_dir"
        )
    argv = ["qemu-img", "convert", "-p", "-O", "raw", "-S", "64k", source, str(target)]
    for percent in _followed(argv, path):
        progress(f"{percent} %")
    if _identity(path) != before or format_of(path) != kind:
        raise UsageError(f"{path}: changed while it was read: try again when nobody writes to it")


def _check(source: str, path: Path) -> None:
    """Of a file that is cut off qemu-img would read zeros."""
    done = subprocess.run(
        ["qemu-img", "check", "-q", "--output", "json", source],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    if done.returncode in (1, 2):  # could not look; found what is wrong
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = f" ({lines[0].removeprefix('qemu-img: ')[:160]})" if lines else ""
        raise HostError(f"{path}: is damaged or cut off{why}: fetch it again")


def _identity(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _run(argv: list[str], path: Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise HostError(_why(path, done.stderr))
    return done.stdout


def _followed(argv: list[str], path: Path) -> Iterator[int]:
    """Run qemu-img; how far it is, in percent."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while data := os.read(process.stdout.fileno(), 4096):
                if found := _PERCENT.findall(data):
                    yield int(found[-1])
            said = process.stderr.read().decode(errors="replace")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise HostError(_why(path, said))


def _why(path: Path, said: str) -> str:
    lines = said.strip().splitlines() or ["no reason given"]
    return f"qemu-img cannot read {path}: {lines[-1].removeprefix('qemu-img: ')[:200]}"
