"""vblade, on this machine: it tells nobody what it serves, and its frames never come back to us.

Whoever puts this server in its place may have left it running, so its command line is looked at.
"""

import contextlib
import getopt
import os
import re
from collections.abc import Iterator
from pathlib import Path

from aoe_fast.presence import Neighbour

_OPTIONS = "b:dsrm:o:l:"  # vblade(8)
_MAC = re.compile(r"[0-9a-f]{12}")


def vblades(interface: str) -> Iterator[Neighbour]:
    """Every vblade that serves on ``interface`` here, as far as this process may see.

    Without root's rights it cannot be seen in which network namespace another one runs: then none.
    """
    for number in filter(str.isdecimal, os.listdir("/proc")):
        place = Path("/proc", number)
        with contextlib.suppress(OSError):
            found = _served(place.joinpath("cmdline").read_bytes())
            if found is None or found[0] != interface:
                continue
            if place.joinpath("ns/net").stat().st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
                _, at, macs = found
                yield Neighbour(f"server, vblade (process {number}),", {at: macs})


def _served(command: bytes) -> tuple[str, tuple[int, int], frozenset[str] | None] | None:
    """(interface, (shelf, slot), machines or None for all) of a vblade's command line, or None."""
    program, *words = os.fsdecode(command).split("\0")
    if os.path.basename(program) != "vblade":
        return None
    try:
        options, (shelf, slot, interface, *_) = getopt.getopt(words, _OPTIONS)
        at = int(shelf), int(slot)
    except (getopt.GetoptError, ValueError):
        return None
    macs = [mac for name, value in options if name == "-m" for mac in value.split(",")]
    plain = [mac.replace(":", "").lower() for mac in macs]
    if not plain or not all(map(_MAC.fullmatch, plain)):
        return interface, at, None
    return interface, at, frozenset(bytes.fromhex(mac).hex(":") for mac in plain)
