"""Who of the strangers gets an address while the pool is short. Pure.

Most of what is left is then for strangers that ask a second time: a machine does after some
seconds, a made-up address does not. Whoever makes up addresses can repeat them too; such a one soon
has asked more often than any machine's firmware does, and a part is kept from those. Who had an
address and did nothing with it comes last.
"""

from collections import OrderedDict
from dataclasses import dataclass

from pxed.mac import Mac

PRESSURE = 30.0
"""Seconds that the pool counts as short after it was, or would have been, empty."""
AGAIN = 0.5
"""Seconds from a stranger's first question to one that counts as its second."""
MANY = 16
"""Questions in vain after which one is not taken for firmware: that asks four or five times in the
minute after it was switched on, and then gives up."""
_MOST = 1 << 14


@dataclass(slots=True)
class _Asker:
    """One that has no address: when it asked first, and how often since."""

    first: float
    times: int = 0


class Pressure:
    """What strangers have asked for in vain; both tables are bounded."""

    def __init__(self) -> None:
        self._until = 0.0
        self._asked: OrderedDict[Mac, _Asker] = OrderedDict()
        self._idled: OrderedDict[Mac, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def admits(self, mac: Mac, now: float, *, held: int, room: int) -> bool:
        """Whether a stranger may have an address now.

        ``held`` addresses are of strangers that have done nothing yet: while the pool is short
        they may be a quarter of ``room``, what is not leased to others. Beyond that only who asks
        again gets one, and the pool stays short.
        """
        if now >= self._until:
            self._asked.clear()
            self._idled.clear()
            return True
        asker = self._asked.get(mac)
        if asker is not None and mac not in self._idled:
            asker.times += 1
            return now - asker.first >= AGAIN
        if 4 * held < room:
            return True
        self.refused(mac, now)
        return False

    def lasts(self, now: float) -> bool:
        """Whether the pool counts as short."""
        return now < self._until

    def crowds(self, mac: Mac) -> bool:
        """Whether this stranger has asked oftener than firmware does while the pool was short."""
        asker = self._asked.get(mac)
        return asker is not None and asker.times >= MANY

    def refused(self, mac: Mac, now: float) -> None:
        """There is none for it; who asks on is not pushed out first."""
        self._until = now + PRESSURE
        self._asked.setdefault(mac, _Asker(now))
        self._asked.move_to_end(mac)
        if len(self._asked) > _MOST:
            self._asked.popitem(last=False)

    def idled(self, mac: Mac) -> None:
        """Its address went to another, as it did nothing with it."""
        self._idled[mac] = None
        if len(self._idled) > _MOST:
            self._idled.popitem(last=False)
