"""Which machine has which address. Pure: the time is passed in, nothing is read or sent.

The key is the MAC: one machine shows three client identifiers on its way up (docs/netboot.md). An
address is *held* from the OFFER on, for seconds; *bound* from the ACK on. A machine's last bound
address stays its **home**: it gets the same one again.

A bound lease is **idle** until its machine is seen to do something (``used``), or says by ARP that
it is there (``answers``): who makes up addresses can send REQUESTs too. Such a flood does not take
the home of a machine that did: those go to strangers last, a few at a time, and back when their
machines return. Nor can it keep new machines out: when the pool is empty, an offer that nobody has
claimed for ``CLAIM`` seconds and a lease that was idle for ``IDLE`` go to others
(``pxed.dhcp.pressure``). Every table is bounded.
"""

import heapq
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from itertools import islice

from pxed.dhcp.ahead import Ahead
from pxed.dhcp.homes import Homes
from pxed.dhcp.lease import Lease, Pool, State
from pxed.dhcp.pressure import Pressure
from pxed.mac import Mac, mac_bytes

HOLD = 10.0
"""Seconds that an unclaimed offer holds its address: firmware sends its REQUEST within four."""
CLAIM = 4.0
"""Seconds until an unclaimed offer may be taken back when the pool is empty."""
IDLE = 20.0
"""Seconds that a lease may be idle when the pool is empty: an iPXE that waits for IPv6 needs 16."""
QUARANTINE = 600.0
"""Seconds that an address which somebody else uses is left alone (RFC 2131 section 4.3.3)."""
_LOOK_PAST = 1024  # addresses that one call may pass over


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
        self.homes = Homes(self._active.__contains__)
        self._idle: OrderedDict[IPv4Address, float] = OrderedDict()  # bound, not real; oldest first
        self._former: dict[IPv4Address, Lease] = {}  # that was idle, and went to another
        self.ahead = Ahead()
        self._next_look = 0  # offset into the range
        self._next_idle = 0  # and into the idle leases
        self._unclaimed: OrderedDict[IPv4Address, None] = OrderedDict()  # on offer, oldest first
        self._pressure = Pressure()
        self._ends: list[tuple[float, IPv4Address]] = []  # heap; stale entries are skipped
        self.set_range(first, last, exclude=exclude)

    # Looking

    @property
    def range(self) -> str:
        """The pool as text, ``FIRST-LAST``."""
        return str(self.pool)

    @property
    def size(self) -> int:
        """How many addresses there are for clients."""
        return len(self.pool)

    def __contains__(self, ip: object) -> bool:
        """Whether ``ip`` is one that this pool may give away."""
        return ip in self.pool

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
        return self.homes.of(mac) is not None

    def is_home(self, ip: IPv4Address) -> bool:
        """Whether ``ip`` is some machine's address of before: no need to probe for a rival user."""
        return ip in self.homes and ip not in self._former

    @property
    def unclaimed(self) -> int:
        """How many addresses are on offer, and nobody has taken them yet."""
        return len(self._unclaimed)

    @property
    def idle(self) -> int:
        """How many leases are of machines that have done nothing since they took them."""
        return len(self._idle)

    @property
    def free(self) -> int:
        """How many addresses nobody has, homes of absent machines among them."""
        return self.size - len(self._active)

    # Looking ahead: addresses that nobody uses are known before somebody wants one

    def vouch(self, ip: IPv4Address, until: float) -> None:
        """Nobody answers at ``ip``: strangers get such an address first, until then."""
        self.ahead.vouch(ip, until, free=ip in self and self._untouched(ip))

    def unseen(self, count: int) -> list[IPv4Address]:
        """Up to ``count`` free addresses that nobody has looked at, further on at each call."""
        found: list[IPv4Address] = []
        for _ in range(min(self.pool.width, _LOOK_PAST)):
            if len(found) >= count:
                break
            ip = self.pool.at(self._next_look)
            self._next_look = (self._next_look + 1) % self.pool.width
            if ip in self and self._untouched(ip) and ip not in self.ahead:
                found.append(ip)
        return found

    def avoid(self, holder: Mac, ip: IPv4Address, now: float, seconds: float = QUARANTINE) -> bool:
        """``holder`` answers at a free ``ip``: quarantine it; False if it is not free any more."""
        if ip not in self or ip in self._active:
            return False
        self.homes.evict(ip)
        self._tell(self._set(Lease(holder, ip, State.DECLINED, now + seconds)))
        return True

    # Changing

    def offer(
        self, mac: Mac, now: float, wanted: IPv4Address | None = None, hold: float = HOLD
    ) -> Lease | None:
        """Hold an address for ``mac``, always the same one if possible; None if none is left.

        None also for a stranger's first question while the pool is short (``Pressure.admits``): if
        it is a machine, it asks again.
        """
        self._expire(now)
        ip = self._of_mac.get(mac)
        if ip is not None:
            lease = self._active[ip]
            # Who makes up addresses could hold them for ever by asking on.
            again = self.is_known(mac) or not self._pressure.lasts(now)
            if lease.state is State.OFFERED and again:
                lease = self._set(Lease(mac, ip, State.OFFERED, now + hold))
            return lease
        ip = None
        held = len(self._unclaimed) + len(self._idle)
        room = self.size - len(self._active) + held
        if self.is_known(mac) or self._pressure.admits(mac, now, held=held, room=room):
            if self.is_known(mac) or not self._pressure.crowds(mac) or self._leave_room(now):
                ip = self._pick(mac, wanted, now)
            ip = ip or self._take_back(now)
            if ip is None and (self.homes.is_real(mac) or 4 * held < self.size):
                ip = next(iter(self.homes.away), None)
            if ip is None:
                self._pressure.refused(mac, now)
        return None if ip is None else self._set(Lease(mac, ip, State.OFFERED, now + hold))

    def bind(
        self, mac: Mac, ip: IPv4Address, now: float, seconds: float, *, renews: bool = False
    ) -> Lease | None:
        """Give ``ip`` to ``mac`` for ``seconds``; None if it is not in the pool or another's.

        ``renews``: it has the address and says so; who does that after a while is there.
        """
        self._expire(now)
        lease = self._active.get(ip)
        if ip not in self or (lease is not None and lease.mac != mac):
            return None
        if lease is None and self.homes.whose(ip) not in (None, mac):
            return None  # never offered, and another machine's home
        if lease is not None and lease.state is State.DECLINED:
            return None
        old = self._of_mac.get(mac)
        if old is not None and old != ip:
            self._drop(old)
        since = self._idle.get(ip, now)
        self._move_in(mac, ip)
        self._former.pop(ip, None)
        bound = self._set(Lease(mac, ip, State.BOUND, now + seconds))
        if not self.homes.is_real(mac):
            self._idle[ip] = since
            self._idle.move_to_end(ip, last=since == now)
        if renews and now - since >= IDLE:
            self.used(mac, now)
        self._tell(bound)
        return bound

    def used(self, mac: Mac, now: float) -> None:
        """The machine did something that shows it is there; unknown ones are fine."""
        lease = self.of(mac, now)
        bound = lease is not None and lease.state is State.BOUND
        if self.homes.is_real(mac) or not (bound or self.is_known(mac)):
            return
        self.homes.prove(mac)
        if lease is not None and bound:
            self._idle.pop(lease.ip, None)
            if self.homes.of(mac) != lease.ip:
                self._settle(mac, lease.ip)
                self._set(lease)

    def answers(self, holder: Mac, ip: IPv4Address, now: float) -> None:
        """``holder`` says by ARP that it has ``ip``: if it is idle there, it is there."""
        if ip in self._idle and self._active[ip].mac == holder:
            self.used(holder, now)

    def to_look_at(self, count: int) -> list[IPv4Address]:
        """Up to ``count`` of the idle leases' addresses, others at each call."""
        if not self._idle:
            return []
        begin = self._next_idle % len(self._idle)
        found = list(islice(self._idle, begin, begin + count))
        self._next_idle = begin + len(found)
        return found

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
        self._tell_home(ip, now)
        return True

    def decline(self, mac: Mac, ip: IPv4Address, now: float, seconds: float = QUARANTINE) -> bool:
        """Somebody else uses ``ip``: quarantine it; False if this machine has not got it."""
        lease = self.of(mac, now)
        if lease is None or lease.ip != ip:
            return False
        self._drop(ip)
        self.homes.evict(ip)
        self._tell(self._set(Lease(mac, ip, State.DECLINED, now + seconds)))
        return True

    def conflict(self, ip: IPv4Address, holder: Mac, now: float) -> bool:
        """``holder`` answers at ``ip``, which is on offer: quarantine it; False if it is not.

        If that is whose idle lease went to another, it gets it back.
        """
        mac, former = self.owner(ip, now), self._former.pop(ip, None)
        if mac is None:
            return False
        if former is None or former.mac != holder or former.expires <= now or self.of(holder, now):
            return self.decline(mac, ip, now)
        self._settle(holder, ip)
        self._set(former)
        self._idle[ip] = now
        self.used(holder, now)
        return True

    def set_range(
        self, first: IPv4Address, last: IPv4Address, *, exclude: Iterable[IPv4Address] = ()
    ) -> None:
        """Move the pool; leases and homes outside the new one are forgotten."""
        self.pool = Pool(first, last, frozenset(ip for ip in exclude if first <= ip <= last))
        for ip in [ip for ip in self._active if ip not in self]:
            self._drop(ip)
        for ip in [ip for _, ip in self.homes.items() if ip not in self]:
            self.homes.evict(ip)
        self.ahead.clear()
        self._former.clear()
        self._next_look = 0

    # Persistence

    def export(self) -> Iterator[Lease]:
        """What a store should hold: bound and declined leases, and homes as RELEASED ones."""
        for lease in self._active.values():
            if lease.state is not State.OFFERED:
                yield lease
        for mac, ip in self.homes.items():
            lease_ = self._active.get(ip)
            if lease_ is None or lease_.mac != mac or lease_.state is State.OFFERED:
                yield Lease(mac, ip, State.RELEASED, 0.0)

    def restore(
        self, records: Iterable[Lease], now: float, real: Callable[[Mac], bool] = lambda _: False
    ) -> None:
        """Take over exported records, oldest first; those outside the pool are skipped.

        ``real``: whether a machine has done something with its lease, or is known otherwise.
        """
        for lease in sorted(records, key=lambda lease: lease.expires):
            if lease.ip not in self or lease.ip in self._active:
                continue
            if lease.state in (State.BOUND, State.RELEASED):
                self._move_in(lease.mac, lease.ip)
            live = lease.expires > now and lease.state in (State.BOUND, State.DECLINED)
            if live and not (lease.state is State.BOUND and lease.mac in self._of_mac):
                self._set(lease)
                if lease.state is State.BOUND:
                    self._idle[lease.ip] = now
            if real(lease.mac):
                self.used(lease.mac, now)

    # Inside

    def _set(self, lease: Lease) -> Lease:
        before = self._active.get(lease.ip)
        if before is not None:
            self._drop(lease.ip)
        self._active[lease.ip] = lease
        self.ahead.used(lease.ip, offered=lease.state is State.OFFERED)
        self.homes.sort(lease.ip)
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
        self.ahead.spend(ip, 0)
        self._unclaimed.pop(ip, None)
        self._idle.pop(ip, None)
        self.homes.sort(ip)
        if self._of_mac.get(lease.mac) == ip:
            del self._of_mac[lease.mac]

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, ip = heapq.heappop(self._ends)
            lease = self._active.get(ip)
            if lease is not None and lease.expires <= now:
                self._drop(ip)
                if lease.state is State.BOUND and self.homes.whose(ip) != lease.mac:
                    self._tell_home(ip, now)

    def _move_in(self, mac: Mac, ip: IPv4Address) -> None:
        """Give up whatever ``ip`` was; it becomes the home of ``mac`` unless that is a guest."""
        if self.homes.opens_to(mac, ip):
            self._settle(mac, ip)
        elif ip in self._active:
            self._drop(ip)

    def _settle(self, mac: Mac, ip: IPv4Address) -> None:
        """Make ``ip`` the home of ``mac``, whoever held or had it before."""
        if ip in self._active:
            self._drop(ip)
        self.homes.settle(mac, ip)

    def _pick(self, mac: Mac, wanted: IPv4Address | None, now: float) -> IPv4Address | None:
        home = self.homes.of(mac)
        if home is not None:
            lease = self._active.get(home)
            if lease is None:
                return home
            if lease.state is State.OFFERED:  # a stranger holds it, unclaimed: take it back
                self._drop(home)
                return home
            if home in self._idle and self.homes.is_real(mac):
                self._send_away(home)
                return home
        if wanted is not None and wanted in self and self._untouched(wanted):
            return wanted
        if len(self._active) + self.homes.absent < self.size:
            start = zlib.crc32(mac_bytes(mac))
            known = self.ahead.best(self.pool.at(start), now)
            if known is not None:
                return known
            for ip in self.pool.around(start):
                if self._untouched(ip):
                    return ip
        return next(iter(self.homes.doubtful), None)

    def _leave_room(self, now: float) -> bool:
        """Whether a quarter of what nobody uses is free; offers that had their time end for it.

        Who asks on and on may not have that: it is for whoever comes.
        """
        while True:
            held = len(self._unclaimed) + len(self._idle)
            if 4 * held < 3 * (self.size - len(self._active) + held):
                return True
            if self._unclaimed_for_long(now) is None:
                return False

    def _unclaimed_for_long(self, now: float) -> IPv4Address | None:
        """Take back what a stranger was offered longest ago and could have claimed."""
        for ip in self._unclaimed:
            lease = self._active[ip]
            left = lease.expires - now
            if left > HOLD or self.is_known(lease.mac):
                continue  # a Raspberry Pi 3's, which is claimed late; a known machine's
            if left > HOLD - CLAIM:
                break
            self._drop(ip)
            return ip
        return None

    def _take_back(self, now: float) -> IPv4Address | None:
        """What a stranger was offered longest ago and could have claimed; else the longest idle."""
        if (offered := self._unclaimed_for_long(now)) is not None:
            return offered
        for ip, since in self._idle.items():
            if now - since < IDLE:
                break
            self._send_away(ip)
            return ip
        return None

    def _send_away(self, ip: IPv4Address) -> None:
        """Take an idle lease back; somebody has to look whether its machine is not there indeed."""
        lease = self._former[ip] = self._active[ip]
        self._drop(ip)
        if self.homes.whose(ip) == lease.mac:
            self.homes.evict(ip)
        self._pressure.idled(lease.mac)

    def _untouched(self, ip: IPv4Address) -> bool:
        return ip not in self._active and ip not in self.homes

    def _tell_home(self, ip: IPv4Address, now: float) -> None:
        owner = self.homes.whose(ip)
        if owner is not None:
            self._tell(Lease(owner, ip, State.RELEASED, now))

    def _tell(self, lease: Lease) -> None:
        if self._on_change is not None:
            self._on_change(lease)
