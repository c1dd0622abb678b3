"""ext4 file systems in files: made, looked at, mended and resized with e2fsprogs.

HostError in one line when a program is missing or fails.
"""

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

# fsck(8)
_MENDED, _UNMENDED = 3, 4


@dataclass(frozen=True, slots=True)
class Super:
    """What a superblock says; ``size`` in bytes, ``clean``: unmounted in order, without errors."""

    size: int
    clean: bool
    errors: bool


def look(path: Path) -> Super:
    """The superblock of the file system in ``path``: one read. UsageError if there is none."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(1024)
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

    HostError if errors are left: a person must decide.
    """
    command = ["e2fsck", "-p", *(["-f"] if thorough else []), str(path)]
    status = _run(*command, good=_MENDED)
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


def _run(*command: str, good: int = 0, keep: int | None = None) -> int:
    """``keep``: a descriptor that the program inherits (our own /proc is closed to it)."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            pass_fds=() if keep is None else (keep,),
        )  # fmt: skip
    except FileNotFoundError:
        raise HostError(f"{command[0]}: not found: is e2fsprogs installed?") from None
    except OSError as error:
        raise HostError(f"{command[0]}: {error.strerror}") from error
    if done.returncode > good or done.returncode < 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise HostError(f"{command[0]} failed: {said[-1].strip() if said else done.returncode}")
    return done.returncode
