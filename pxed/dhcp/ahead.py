"""Free addresses that were looked at before one was wanted, and until when that counts. Pure."""

from collections import OrderedDict
from ipaddress import IPv4Address


class Ahead:
    """The word for each address: nobody answers there."""

    def __init__(self) -> None:
        self._until: OrderedDict[IPv4Address, float] = OrderedDict()  # oldest look first
        self._word: dict[IPv4Address, float] = {}  # what was vouched for as it was offered

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, ip: object) -> bool:
        return ip in self._until

    def vouch(self, ip: IPv4Address, until: float, *, free: bool) -> None:
        """Somebody looked: good until then, if the address is still free."""
        self._until.pop(ip, None)
        if free:
            self._until[ip] = until

    def ending(self, by: float) -> list[IPv4Address]:
        """Those whose word ends by then."""
        found = []
        for ip, until in self._until.items():
            if until > by:
                break
            found.append(ip)
        return found

    def best(self, ip: IPv4Address, now: float) -> IPv4Address | None:
        """``ip`` if there is a word for it, else the youngest word: good if any is."""
        if self._until and self._until.get(ip, now) <= now:
            ip = next(reversed(self._until))
        return ip if self._until.get(ip, now) > now else None

    def used(self, ip: IPv4Address, *, offered: bool) -> None:
        """It is no longer free; if it is on offer, the word can still be spent."""
        until = self._until.pop(ip, None)
        if until is not None and offered:
            self._word[ip] = until

    def spend(self, ip: IPv4Address, now: float) -> bool:
        """Whether there is a word for ``ip``, on offer now; only once."""
        return self._word.pop(ip, now) > now

    def clear(self) -> None:
        """Other addresses are wanted from now on."""
        self._until.clear()
