"""Looks ahead whether somebody uses the addresses that strangers will be offered next.

An offer of an address that was never used here is preceded by an ARP probe (RFC 2131 section 2.2),
and a probe takes as long as one waits for its answer. Done ahead of time it costs nobody a wait: a
few dozen addresses are always known to be free, more while a room of new machines comes.

Also asks who took an address and was not heard since: a system that boots nothing here says so by
its answer, and keeps its lease whoever else wants one.
"""

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from pxed.dhcp.leases import Leases
from pxed.mac import Mac

FRESH = 300.0
"""Seconds that a look is good for."""
_RENEW = 30.0  # as long before the end of that it is repeated
# Always ready: what a room can ask for before the first further looks are over (a wait and a bit),
# for one ARP request a second while nobody asks.
_FEWEST, _MOST = 256, 1024
_AT_ONCE = 64  # probes in one turn
_IDLE = 5.0


class Lookout:
    """Keeps addresses of ``leases`` vouched for between ``start`` and ``close``.

    ``ask`` sends a probe for an address, OSError if it cannot; ``wait``: seconds until silence
    means that nobody has it; ``wanted`` says whether addresses are given out at all now;
    ``catch_up`` has what answers have arrived ``heard`` before that is concluded.
    """

    def __init__(
        self,
        leases: Leases,
        ask: Callable[[IPv4Address], None],
        wanted: Callable[[], bool],
        wait: float,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._leases = leases
        self._ask = ask
        self._wanted = wanted
        self._wait = wait
        self._catch_up = catch_up
        self._target = _FEWEST
        self._asked: dict[IPv4Address, float] = {}  # when; oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._visit = 0.0  # when idle leases are looked at next

    def start(self) -> None:
        self._again(0)

    def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asked.clear()

    def used(self, *, dry: bool) -> None:
        """An address was offered; ``dry``: one that nobody had looked at, so there were too few."""
        if dry:
            self._target = min(self._target * 2, _MOST)
        if self._timer is not None and self._due > self._now() + self._wait / 4:
            self._timer.cancel()
            self._again(self._wait / 4)

    def __contains__(self, ip: object) -> bool:
        """Whether an answer about ``ip`` is waited for."""
        return ip in self._asked

    def heard(self, holder: Mac, ip: IPv4Address, now: float) -> bool:
        """``holder`` has the address ``ip``: True if that is news, and it is avoided now."""
        if self._asked.pop(ip, None) is None:
            return False
        return self._leases.avoid(holder, ip, now)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _again(self, wait: float) -> None:
        self._due = self._now() + wait  # uvloop's handles of what is due at once cannot tell
        self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        now, wall = self._now(), time.time()
        if self._asked:
            self._catch_up()
        while self._asked:
            ip = next(iter(self._asked))
            if self._asked[ip] > now - self._wait:
                break
            del self._asked[ip]
            self._leases.vouch(ip, wall + FRESH)
        if self._wanted():
            missing = self._target - len(self._leases.ahead) - len(self._asked)
            due = self._leases.ahead.ending(wall + _RENEW) + self._leases.unseen(max(missing, 0))
            self._probe(due, now)
            if now >= self._visit:
                self._visit = now + _IDLE
                self._ask_each(self._leases.to_look_at(_AT_ONCE))
        if not self._asked:
            self._target = max(_FEWEST, self._target // 2)
        self._again(self._wait / 4 if self._asked else _IDLE)

    def _probe(self, due: list[IPv4Address], now: float) -> None:
        fresh = [ip for ip in due if ip not in self._asked][:_AT_ONCE]
        self._asked |= dict.fromkeys(self._ask_each(fresh), now)

    def _ask_each(self, due: list[IPv4Address]) -> list[IPv4Address]:
        """Those that were asked for: not all of them while the link is down."""
        for count, ip in enumerate(due):
            try:
                self._ask(ip)
            except OSError:
                return due[:count]
        return due
