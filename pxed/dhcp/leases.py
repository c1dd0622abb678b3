"""Which machine has which address. Pure: the time is passed in, nothing is read or sent.

The key is the MAC: one machine shows three client identifiers on its way up (docs/netboot.md). An
address is *held* from the OFFER on, for seconds; *bound* from the ACK on. A machine's last bound
address stays its **home**: it gets the same one again, and a flood of random MACs cannot take it,
since homes go to strangers last, and an unclaimed offer of one is taken back.

Nor can such a flood keep new machines out. Once the pool was empty, most of it is for strangers
that ask a second time (a machine does after some seconds, a made-up address does not), and an offer
that nobody has claimed for ``CLAIM`` seconds is theirs too.
Every table is bounded.
"""

import heapq
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from pxed.errors import UsageError
from pxed.mac import Mac, mac_bytes

HOLD = 10.0
"""Seconds that an unclaimed offer holds its address: firmware sends its REQUEST within four."""
CLAIM = 4.0
"""Seconds until an unclaimed offer may be taken back when the pool is empty."""
PRESSURE = 30.0
"""Seconds that the pool counts as short after it was, or would have been, empty."""
AGAIN = 0.5
"""Seconds from a stranger's first question to one that counts as its second."""
QUARANTINE = 600.0
"""Seconds that an address which somebody else uses is left alone (RFC 2131 section 4.3.3)."""
_MAX_POOL = 1 << 16
_MAX_ASKED = 1 << 14
_LOOK_PAST = 1024  # addresses that one call may pass over


class State(StrEnum):
    """What a lease's address is doing."""

    OFFERED = "offered"
    BOUND = "bound"
    RELEASED = "released"  # free, but the machine's home
    DECLINED = "declined"  # in quarantine


@dataclass(frozen=True, slots=True)
class Lease:
    """One address of one machine until ``expires`` (seconds, the caller's clock)."""

    mac: Mac
    ip: IPv4Address
    state: State
    expires: float


def carve(network: IPv4Network, taken: Collection[IPv4Address]) -> tuple[IPv4Address, IPv4Address]:
    """A range for a subnet that has none configured: its upper half, 1024 addresses at most.

    UsageError if the subnet has no address left for a client.
    """
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    size = last - first + 1
    if size - sum(1 for ip in taken if ip in network) < 1:
        raise UsageError(f"{network} has no address for clients: set [dhcp] range")
    half = min((size + 1) // 2, 1024)
    low = last - half + 1
    if all(IPv4Address(n) in taken for n in range(low, last + 1)):
        low = first
    return IPv4Address(low), IPv4Address(last)


class Leases:
    """The pool ``first`` to ``last`` without ``exclude``.

    ``on_change`` is called with each lease that a store should keep (bound, released, declined;
    keyed by ``ip``), not with offers. UsageError if the range is upside down or too large.
    """

    def __init__(
        self,
        first: IPv4Address,
        last: IPv4Address,
        *,
        exclude: Iterable[IPv4Address] = (),
        on_change: Callable[[Lease], None] | None = None,
    ) -> None:
        self._on_change = on_change
        self._active: dict[IPv4Address, Lease] = {}
        self._of_mac: dict[Mac, IPv4Address] = {}  # offered or bound; inverse of _active
        self._home: OrderedDict[Mac, IPv4Address] = OrderedDict()  # least recently used first
        self._home_at: dict[IPv4Address, Mac] = {}  # inverse of _home
        self._both = 0  # addresses that are active and somebody's home
        self._vouched: OrderedDict[IPv4Address, float] = OrderedDict()  # oldest look first
        self._word: dict[IPv4Address, float] = {}  # what was vouched for as it was offered
        self._next_look = 0  # offset into the range
        self._unclaimed: OrderedDict[IPv4Address, None] = OrderedDict()  # on offer, oldest first
        self._short_until = 0.0
        self._asked: OrderedDict[Mac, float] = OrderedDict()  # strangers, while the pool is short
        self._ends: list[tuple[float, IPv4Address]] = []  # heap; stale entries are skipped
        self.set_range(first, last, exclude=exclude)

    # Looking

    @property
    def range(self) -> str:
        """The pool as text, ``FIRST-LAST``."""
        return f"{self.first}-{self.last}"

    @property
    def size(self) -> int:
        """How many addresses there are for clients."""
        return int(self.last) - int(self.first) + 1 - len(self._exclude)

    def __contains__(self, ip: object) -> bool:
        """Whether ``ip`` is one that this pool may give away."""
        return isinstance(ip, IPv4Address) and (
            self.first <= ip <= self.last and ip not in self._exclude
        )

    def of(self, mac: Mac, now: float) -> Lease | None:
        """The machine's live lease (offered or bound)."""
        self._expire(now)
        ip = self._of_mac.get(mac)
        return None if ip is None else self._active[ip]

    def owner(self, ip: IPv4Address, now: float) -> Mac | None:
        """Who has ``ip`` (offered or bound): for TFTP, which sees only addresses."""
        self._expire(now)
        lease = self._active.get(ip)
        return None if lease is None or lease.state is State.DECLINED else lease.mac

    def is_known(self, mac: Mac) -> bool:
        """Whether this machine was ever bound here (and not displaced since)."""
        return mac in self._home

    def is_home(self, ip: IPv4Address) -> bool:
        """Whether ``ip`` is some machine's address of before: no need to probe for a rival user."""
        return ip in self._home_at

    @property
    def unclaimed(self) -> int:
        """How many addresses are on offer, and nobody has taken them yet."""
        return len(self._unclaimed)

    @property
    def free(self) -> int:
        """How many addresses nobody has, homes of absent machines among them."""
        return self.size - len(self._active)

    # Looking ahead: addresses that nobody uses are known before somebody wants one

    @property
    def vouched(self) -> int:
        """How many addresses wait that were looked at; some may have to be looked at again."""
        return len(self._vouched)

    def vouch(self, ip: IPv4Address, until: float) -> None:
        """Nobody answers at ``ip``: strangers get such an address first, until then."""
        self._vouched.pop(ip, None)
        if ip in self and self._untouched(ip):
            self._vouched[ip] = until

    def spend(self, ip: IPv4Address, now: float) -> bool:
        """Whether somebody looked, not long ago, if ``ip``, on offer now, is in use; only once."""
        return self._word.pop(ip, now) > now

    def ending(self, by: float) -> list[IPv4Address]:
        """Vouched addresses whose word ends by then: look again."""
        found = []
        for ip, until in self._vouched.items():
            if until > by:
                break
            found.append(ip)
        return found

    def unseen(self, count: int) -> list[IPv4Address]:
        """Up to ``count`` free addresses that nobody has looked at, further on at each call."""
        found: list[IPv4Address] = []
        span = int(self.last) - int(self.first) + 1
        for _ in range(min(span, _LOOK_PAST)):
            if len(found) >= count:
                break
            ip = self.first + self._next_look % span
            self._next_look = (self._next_look + 1) % span
            if ip in self and self._untouched(ip) and ip not in self._vouched:
                found.append(ip)
        return found

    def avoid(self, holder: Mac, ip: IPv4Address, now: float, seconds: float = QUARANTINE) -> bool:
        """``holder`` answers at a free ``ip``: quarantine it; False if it is not free any more."""
        if ip not in self or ip in self._active:
            return False
        self._evict(ip)
        self._tell(self._set(Lease(holder, ip, State.DECLINED, now + seconds)))
        return True

    # Changing

    def offer(
        self, mac: Mac, now: float, wanted: IPv4Address | None = None, hold: float = HOLD
    ) -> Lease | None:
        """Hold an address for ``mac``, always the same one if possible; None if none is left.

        None also for a stranger's first question while the pool is short (``_asks_again``): if it
        is a machine, it asks again.
        """
        self._expire(now)
        ip = self._of_mac.get(mac)
        if ip is not None:
            lease = self._active[ip]
            if lease.state is State.OFFERED:
                lease = self._set(Lease(mac, ip, State.OFFERED, now + hold))
            return lease
        ip = None
        if self.is_known(mac) or self._asks_again(mac, now):
            ip = self._pick(mac, wanted, now) or self._take_back(now)
            if ip is None:
                self._short_until = now + PRESSURE
                self._note(mac, now)
        return None if ip is None else self._set(Lease(mac, ip, State.OFFERED, now + hold))

    def bind(self, mac: Mac, ip: IPv4Address, now: float, seconds: float) -> Lease | None:
        """Give ``ip`` to ``mac`` for ``seconds``; None if it is not in the pool or another's."""
        self._expire(now)
        lease = self._active.get(ip)
        if ip not in self or (lease is not None and lease.mac != mac):
            return None
        if lease is None and self._home_at.get(ip, mac) != mac:
            return None  # never offered, and another machine's home
        if lease is not None and lease.state is State.DECLINED:
            return None
        old = self._of_mac.get(mac)
        if old is not None and old != ip:
            self._drop(old)
        self._settle(mac, ip)
        bound = self._set(Lease(mac, ip, State.BOUND, now + seconds))
        self._tell(bound)
        return bound

    def withdraw(self, mac: Mac, now: float) -> None:
        """The machine took another server's offer: let go of what is held for it."""
        lease = self.of(mac, now)
        if lease is not None and lease.state is State.OFFERED:
            self._drop(lease.ip)

    def release(self, mac: Mac, ip: IPv4Address, now: float) -> bool:
        """The machine gives its address back; False if it has not got it. It stays its home."""
        lease = self.of(mac, now)
        if lease is None or lease.ip != ip:
            return False
        self._drop(ip)
        if self._home.get(mac) == ip:
            self._tell(Lease(mac, ip, State.RELEASED, now))
        return True

    def decline(self, mac: Mac, ip: IPv4Address, now: float, seconds: float = QUARANTINE) -> bool:
        """Somebody else uses ``ip``: quarantine it; False if this machine has not got it."""
        lease = self.of(mac, now)
        if lease is None or lease.ip != ip:
            return False
        self._drop(ip)
        self._evict(ip)
        self._tell(self._set(Lease(mac, ip, State.DECLINED, now + seconds)))
        return True

    def set_range(
        self, first: IPv4Address, last: IPv4Address, *, exclude: Iterable[IPv4Address] = ()
    ) -> None:
        """Move the pool; leases and homes outside the new one are forgotten."""
        count = int(last) - int(first) + 1
        if not 0 < count <= _MAX_POOL:
            raise UsageError(f"range {first}-{last} must have 1 to {_MAX_POOL} addresses")
        self.first, self.last = first, last
        self._exclude = frozenset(ip for ip in exclude if first <= ip <= last)
        for ip in [ip for ip in self._active if ip not in self]:
            self._drop(ip)
        for ip in [ip for ip in self._home_at if ip not in self]:
            self._evict(ip)
        self._vouched.clear()
        self._next_look = 0

    # Persistence

    def export(self) -> Iterator[Lease]:
        """What a store should hold: bound and declined leases, and homes as RELEASED ones."""
        for lease in self._active.values():
            if lease.state is not State.OFFERED:
                yield lease
        for mac, ip in self._home.items():
            lease_ = self._active.get(ip)
            if lease_ is None or lease_.mac != mac or lease_.state is State.OFFERED:
                yield Lease(mac, ip, State.RELEASED, 0.0)

    def restore(self, records: Iterable[Lease], now: float) -> None:
        """Take over exported records, oldest first; those outside the pool are skipped."""
        for lease in sorted(records, key=lambda lease: lease.expires):
            if lease.ip not in self or lease.ip in self._active:
                continue
            if lease.state in (State.BOUND, State.RELEASED):
                self._settle(lease.mac, lease.ip)
            live = lease.expires > now and lease.state in (State.BOUND, State.DECLINED)
            if live and not (lease.state is State.BOUND and lease.mac in self._of_mac):
                self._set(lease)

    # Inside

    def _set(self, lease: Lease) -> Lease:
        before = self._active.get(lease.ip)
        if before is not None:
            self._drop(lease.ip)
        self._active[lease.ip] = lease
        until = self._vouched.pop(lease.ip, None)
        if until is not None and lease.state is State.OFFERED:
            self._word[lease.ip] = until
        self._both += lease.ip in self._home_at
        if lease.state is not State.DECLINED:
            self._of_mac[lease.mac] = lease.ip
        if lease.state is State.OFFERED:
            self._unclaimed[lease.ip] = None
        heapq.heappush(self._ends, (lease.expires, lease.ip))
        if len(self._ends) > 4 * len(self._active) + 64:  # renewals leave stale entries behind
            self._ends = [(item.expires, ip) for ip, item in self._active.items()]
            heapq.heapify(self._ends)
        return lease

    def _drop(self, ip: IPv4Address) -> None:
        lease = self._active.pop(ip)
        self._word.pop(ip, None)
        self._unclaimed.pop(ip, None)
        self._both -= ip in self._home_at
        if self._of_mac.get(lease.mac) == ip:
            del self._of_mac[lease.mac]

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, ip = heapq.heappop(self._ends)
            lease = self._active.get(ip)
            if lease is not None and lease.expires <= now:
                self._drop(ip)

    def _settle(self, mac: Mac, ip: IPv4Address) -> None:
        """Make ``ip`` the home of ``mac``, whoever held or had it before."""
        if ip in self._active:
            self._drop(ip)
        self._evict(ip)
        former = self._home.pop(mac, None)
        if former is not None:
            del self._home_at[former]
            self._both -= former in self._active
        self._home[mac] = ip
        self._home_at[ip] = mac
        self._both += ip in self._active

    def _evict(self, ip: IPv4Address) -> None:
        mac = self._home_at.pop(ip, None)
        if mac is not None:
            del self._home[mac]
            self._both -= ip in self._active

    def _pick(self, mac: Mac, wanted: IPv4Address | None, now: float) -> IPv4Address | None:
        home = self._home.get(mac)
        if home is not None:
            lease = self._active.get(home)
            if lease is None:
                return home
            if lease.state is State.OFFERED:  # a stranger holds it, unclaimed: take it back
                self._drop(home)
                return home
        if wanted is not None and wanted in self and self._untouched(wanted):
            return wanted
        if len(self._active) + len(self._home_at) < self.size + self._both:
            start = zlib.crc32(mac_bytes(mac))
            span = int(self.last) - int(self.first) + 1
            if self._vouched:
                ip = self.first + start % span
                if self._vouched.get(ip, now) <= now:
                    ip = next(reversed(self._vouched))  # the youngest word: good if any is
                if self._vouched[ip] > now:
                    return ip
            for step in range(span):
                ip = self.first + (start + step) % span
                if ip in self and self._untouched(ip):
                    return ip
        return next((ip for ip in self._home.values() if ip not in self._active), None)

    def _asks_again(self, mac: Mac, now: float) -> bool:
        """Whether a stranger may have an address now.

        While the pool is short, offers that nobody took may fill a quarter of what is not leased;
        beyond that only who asks again gets one, and the pool stays short.
        """
        if now >= self._short_until:
            self._asked.clear()
            return True
        first = self._asked.get(mac)
        if first is not None:
            return now - first >= AGAIN
        leased = len(self._active) - len(self._unclaimed)
        if 4 * len(self._unclaimed) < self.size - leased:
            return True
        self._short_until = now + PRESSURE
        self._note(mac, now)
        return False

    def _note(self, mac: Mac, now: float) -> None:
        """The first time that this stranger asked in vain; who asks on is not pushed out first."""
        self._asked[mac] = self._asked.pop(mac, now)
        if len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)

    def _take_back(self, now: float) -> IPv4Address | None:
        """The address that was offered to a stranger longest ago, and could have been claimed."""
        for ip in self._unclaimed:
            lease = self._active[ip]
            left = lease.expires - now
            if left > HOLD or lease.mac in self._home:
                continue  # a Raspberry Pi 3's, which is claimed late; a known machine's
            if left > HOLD - CLAIM:
                return None
            self._drop(ip)
            return ip
        return None

    def _untouched(self, ip: IPv4Address) -> bool:
        return ip not in self._active and ip not in self._home_at

    def _tell(self, lease: Lease) -> None:
        if self._on_change is not None:
            self._on_change(lease)
