"""What the process takes from its host: descriptors, and the lock of its state directory."""

import fcntl
import os
import resource
from pathlib import Path

from pxed.errors import HostError


def raise_file_limit() -> None:
    """Two descriptors for each client: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def claim(state_dir: Path) -> int:
    """A lock on the state directory, held until the descriptor is closed or the process ends.

    HostError if another server holds it, or it cannot be made.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{state_dir}: {error.strerror}: choose another state_dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise HostError(
            f"{state_dir}: another pxed serves this state directory: "
            "stop it, or choose another state_dir"
        ) from None
    return fd
