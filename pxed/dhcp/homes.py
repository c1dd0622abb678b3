"""The address that each machine had last, its home, and who of them was seen to be there. Pure.

A machine is **real** once it was seen to do something with its address. Homes of absent machines
stand in two lines, longest absent first: those of real ones, and those that may be a flood's.
"""

from collections import OrderedDict
from collections.abc import Callable, ItemsView
from ipaddress import IPv4Address

from pxed.mac import Mac


class Homes:
    """One home for each machine, one machine for each.

    ``taken``: whether somebody has an address now; ``sort`` is to be called where that changed.
    ``away`` and ``doubtful`` are the two lines, to be looked at.
    """

    def __init__(self, taken: Callable[[IPv4Address], bool]) -> None:
        self._taken = taken
        self._of: dict[Mac, IPv4Address] = {}
        self._at: dict[IPv4Address, Mac] = {}  # inverse of _of
        self._real: set[Mac] = set()
        self.away: OrderedDict[IPv4Address, None] = OrderedDict()
        self.doubtful: OrderedDict[IPv4Address, None] = OrderedDict()

    def __contains__(self, ip: object) -> bool:
        """Whether ``ip`` is somebody's home."""
        return ip in self._at

    def of(self, mac: Mac) -> IPv4Address | None:
        """Where this machine's home is."""
        return self._of.get(mac)

    def whose(self, ip: IPv4Address) -> Mac | None:
        """Whose home ``ip`` is."""
        return self._at.get(ip)

    def items(self) -> ItemsView[Mac, IPv4Address]:
        """Every machine with its home, in the order in which they moved in."""
        return self._of.items()

    @property
    def absent(self) -> int:
        """How many homes are of machines that have no address now."""
        return len(self.away) + len(self.doubtful)

    def is_real(self, mac: Mac) -> bool:
        """Whether this machine has done something since it moved in."""
        return mac in self._real

    def opens_to(self, mac: Mac, ip: IPv4Address) -> bool:
        """Whether ``mac`` may make ``ip`` its home.

        In a real machine's home one that was not seen to be there is only a guest.
        """
        owner = self._at.get(ip, mac)
        return owner == mac or mac in self._real or owner not in self._real

    def settle(self, mac: Mac, ip: IPv4Address) -> None:
        """Make ``ip`` the home of ``mac``, whoever had it before."""
        if self._at.get(ip) != mac:
            self.evict(ip)
        former = self._of.pop(mac, None)
        if former is not None:
            del self._at[former]
            self.sort(former)
        self._of[mac] = ip
        self._at[ip] = mac
        self.sort(ip)

    def prove(self, mac: Mac) -> None:
        """``mac``, which has a home or is about to get one, was seen to be there."""
        self._real.add(mac)
        if mac in self._of:
            self.sort(self._of[mac])

    def evict(self, ip: IPv4Address) -> None:
        """Whose home ``ip`` is has none from now on, and nothing was seen of it."""
        mac = self._at.pop(ip, None)
        if mac is not None:
            del self._of[mac]
            self._real.discard(mac)
            self.sort(ip)

    def sort(self, ip: IPv4Address) -> None:
        """Put ``ip`` at the end of the line where it belongs now, if it does in one."""
        self.away.pop(ip, None)
        self.doubtful.pop(ip, None)
        owner = self._at.get(ip)
        if owner is not None and not self._taken(ip):
            (self.away if owner in self._real else self.doubtful)[ip] = None
