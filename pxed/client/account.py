"""The password of an account in an image: only ever its hash, and checked before anything is built.

A hash that is damaged would lock all seats out, so it is held against its method (crypt(5)).
"""

import re
import stat
from collections.abc import Callable
from pathlib import Path

from pxed.errors import UsageError

_HASH = re.compile(r"\$(?P<method>[a-z0-9]+)\$(?:[A-Za-z0-9./,=-]*\$)*(?P<sum>[A-Za-z0-9./]+)")
_SUMS = {"1": 22, "5": 43, "6": 86, "y": 43, "gy": 43, "7": 43, "2a": 53, "2b": 53, "2y": 53}
"""Characters that the hash itself has, by its method; bcrypt's with its salt."""
_LIMIT = 4096


def check_hash(text: str) -> str:
    """``text`` if it is a whole hash as crypt(5) knows it; UsageError, which never quotes it."""
    found = _HASH.fullmatch(text)
    if found is None:
        raise UsageError(
            "a password is given by its hash, one line as mkpasswd (package whois) prints it"
        )
    wanted = _SUMS.get(found["method"])
    if wanted is None:
        raise UsageError(
            "the hash of the password is of a method that crypt(5) does not name: use mkpasswd"
        )
    if len(found["sum"]) != wanted:
        raise UsageError(
            f"the hash of the password is damaged: its last part has {len(found['sum'])} "
            f"characters instead of {wanted}: run mkpasswd again"
        )
    return text


def read_hash(path: Path, warn: Callable[[str], None]) -> str:
    """The hash that the file holds, in its one line; ``warn`` hears if others can read the file.

    UsageError for a file that is empty, has more than one line, or holds something else.
    """
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            data = file.read(_LIMIT)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    lines = data.decode("latin-1").strip().splitlines()
    if not lines:
        raise UsageError(f"{path}: is empty: mkpasswd > {path}")
    if len(lines) > 1:
        raise UsageError(f"{path}: has {len(lines)} lines, and a hash is one")
    try:
        found = check_hash(lines[0].strip())
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        who = "everybody" if mode & stat.S_IROTH else "its group"
        warn(f"{path} can be read by {who} on this machine: chmod 600 {path}")
    return found
