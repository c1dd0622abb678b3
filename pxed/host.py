"""What the process takes from its host: descriptors, and the lock of its state directory."""

import errno
import fcntl
import os
import pwd
import resource
import time
from pathlib import Path

from pxed import disk
from pxed.errors import HostError, ReadOnlyDisk

_FEWEST = 256
_LET_GO = 1.0  # seconds that a killed server's child may still hold its lock: until it has its exec
_WRITTEN = ("config", "config/midlayers", "pxed.db", "leases.journal")


def raise_file_limit() -> None:
    """Two descriptors for each client: take what the system allows; HostError if that is nothing.

    Asked for first of all: with a few less anything may fail, and its error name something else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _FEWEST:
        raise HostError(
            f"at most {hard} files may be open here: raise the limit (ulimit -n, LimitNOFILE=) to"
            f" {_FEWEST} at least, and by two for each client"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def claim(state_dir: Path) -> int:
    """A lock on the state directory, held until the descriptor is closed or the process ends.

    HostError if another server holds it, it cannot be made, or something in it cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.EROFS:
            raise _read_only(state_dir) from error
        raise HostError(f"{state_dir}: {error.strerror}: choose another state_dir") from error
    if not _locked(fd):
        os.close(fd)
        raise HostError(
            f"{state_dir}: another pxed serves this state directory: "
            "stop it, or choose another state_dir"
        )
    for path in (state_dir, *(state_dir / name for name in _WRITTEN)):
        if path.exists() and not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            os.close(fd)
            try:
                disk.refuse_read_only(path)
            except ReadOnlyDisk:
                raise _read_only(path) from None
            raise HostError(
                f"{path}: {_name()} cannot write it: give it to that user (chown), "
                "or choose another state_dir"
            )
    return fd


def _locked(fd: int) -> bool:
    until = time.monotonic() + _LET_GO
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        else:
            return True


def _read_only(path: Path) -> HostError:
    """A disk that failed; or, under systemd, a directory that its unit does not name."""
    text = str(ReadOnlyDisk(path))
    if "INVOCATION_ID" in os.environ:
        text += "; or, if it is another directory than the unit's, name it in ReadWritePaths= there"
    return HostError(text)


def _name() -> str:
    try:
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"user {os.geteuid()}"
