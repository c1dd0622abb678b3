"""ext4 file systems in files: made, looked at, mended and resized with e2fsprogs.

HostError in one line when a program is missing or fails.
"""

import contextlib
import re
import resource
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pxed.errors import HostError, UsageError

# linux/fs/ext4/ext4.h, struct ext4_super_block, at byte 1024.
_SUPER = struct.Struct("<4xI16xI28xHH36xI")  # blocks, log block size, magic, state, incompat
_MAGIC = 0xEF53
_VALID, _ERRORS = 0x1, 0x2
_RECOVER = 0x4

# What a client wrote is checked by a program that was never meant for it: so much and no more.
PATIENCE = 60.0  # seconds, and two for each GiB; a usual one of 512 MiB takes 0.1
_MEMORY = 1 << 30  # and a part in 256 of its size

# fsck(8)
_MENDED, _UNMENDED = 3, 4
# How e2fsck ends whatever it found, which it has said before.
_ENDING = re.compile(r".*: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY\.|\(i\.e\., without .*")


@dataclass(frozen=True, slots=True)
class Super:
    """What a superblock says; ``size`` in bytes, ``clean``: unmounted in order, without errors."""

    size: int
    clean: bool
    errors: bool


def look(path: Path, at: int = 0) -> Super:
    """The superblock of the file system in ``path``, from byte ``at`` on: one read.

    UsageError if there is none.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(at + 1024)
            raw = file.read(_SUPER.size)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    if len(raw) < _SUPER.size:
        raise UsageError(f"{path}: too short for a file system")
    blocks, shift, magic, state, incompat = _SUPER.unpack(raw)
    if magic != _MAGIC or shift > 6:
        raise UsageError(f"{path}: has no ext4 file system")
    errors = bool(state & _ERRORS)
    clean = bool(state & _VALID) and not errors and not incompat & _RECOVER
    return Super(blocks << (10 + shift), clean, errors)


NOT_IN_ORDER = (
    "was not unmounted in order: start that machine and shut it down, or mend a copy with e2fsck"
)


def check_unmounted(path: Path) -> None:
    """UsageError if ``path`` is an ext file system whose journal was not replayed, or with errors.

    Seats read it without its journal: what was written last would be missing.
    """
    try:
        clean = look(path).clean
    except UsageError:  # another kind of file system has journals of another kind, or none
        return
    if not clean:
        raise UsageError(f"{path}: {NOT_IN_ORDER}")


def make(fd: int, label: str) -> None:
    """Make a file system in the sparse file that is open as ``fd``, as large as it is."""
    # Inode tables of a sparse file are zero already: mke2fs then marks them as done, and no client
    # spends its first minute writing zeros over the wire.
    _run(
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-L", label,
        "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", f"/proc/self/fd/{fd}",
        keep=fd,
    )  # fmt: skip


def mend(path: Path, *, thorough: bool = False) -> str:
    """Replay the journal and mend what can be mended safely (e2fsck -p); what it did, in a word.

    HostError if errors are left, or if it takes more than a client may cost: a person must decide.
    """
    command = ["e2fsck", "-p", *(["-f"] if thorough else []), str(path)]
    if thorough:
        status = _run(*command, good=_MENDED)
    else:
        size = path.stat().st_size if path.exists() else 0
        limits = PATIENCE + 2 * (size >> 30), _MEMORY + (size >> 8)
        status = _run(*command, good=_MENDED, limits=limits)
    return "mended" if status else "journal replayed"


def resize(path: Path, size: int) -> None:
    """Give the file system and its file another size; the file should be a copy."""
    if size > path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(size)
    mend(path, thorough=True)
    _run("resize2fs", str(path), f"{size >> 10}K")
    with path.open("r+b") as file:
        file.truncate(size)


def _run(
    *command: str, good: int = 0, keep: int | None = None, limits: tuple[float, int] | None = None
) -> int:
    """``keep``: a descriptor that the program inherits (our own /proc is closed to it).

    ``limits``: seconds, and bytes of memory.
    """
    patience = limits[0] if limits else None
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, errors="replace", pass_fds=() if keep is None else (keep,),
        ) as process:  # fmt: skip
            try:
                if limits is not None:
                    with contextlib.suppress(OSError):  # it has ended already
                        resource.prlimit(process.pid, resource.RLIMIT_AS, (limits[1], limits[1]))
                output, _ = process.communicate(timeout=patience)
            except BaseException:
                process.kill()
                raise
    except FileNotFoundError:
        raise HostError(f"{command[0]}: not found: is e2fsprogs installed?") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{command[0]} had not ended after {patience:g} s") from None
    except OSError as error:
        raise HostError(f"{command[0]}: {error.strerror}") from error
    status = process.returncode
    if status > good or status < 0:
        # Labels and names in it are a client's.
        lines = (_printable(line.strip()) for line in output.splitlines())
        said = [line for line in lines if line]
        telling = [line for line in said if not _ENDING.fullmatch(line)] or said
        raise HostError(f"{command[0]} failed: {telling[-1] if telling else status}")
    return status


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
