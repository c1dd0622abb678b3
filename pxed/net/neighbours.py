"""Who has which address, as the kernel's neighbour table knows it.

A machine that sends us a packet has asked for our MAC first, so it is in the table by then. The
table is read as text: netlink would cost a thread for each look (see ``pxed.net.link``).
"""

import time
from pathlib import Path

from pxed.mac import Mac, parse_mac

_TABLE = Path("/proc/thread-self/net/arp")  # of this thread's network namespace
_COMPLETE = 0x02  # ATF_COM
_FRESH = 0.5


def parse(text: str, interface: str) -> dict[str, Mac]:
    """MAC by IPv4 address in the text of /proc/net/arp, of ``interface`` only."""
    found: dict[str, Mac] = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) != 6 or words[5] != interface or not int(words[2], 16) & _COMPLETE:
            continue
        found[words[0]] = parse_mac(words[3])
    return found


class Neighbours:
    """Looks addresses up on one interface; reads the table twice a second at most."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._known: dict[str, Mac] = {}
        self._read = -_FRESH

    def mac_of(self, ip: str) -> Mac | None:
        """The machine with this address; None if the kernel does not know."""
        now = time.monotonic()
        if now - self._read >= _FRESH:
            self._read = now
            try:
                self._known = parse(_TABLE.read_text(), self._interface)
            except (OSError, ValueError):
                self._known = {}
        return self._known.get(ip)
