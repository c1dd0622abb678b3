"""Who else serves this segment, and what that means for our clients (M14 to M16). Pure.

Findings come in with the time; events come out: one when a rival turns up or does something new,
one when it has not been heard for a while.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from pxed.dhcp.replies import Mode
from pxed.dhcp.rival import Rival
from pxed.events import Event, Kind
from pxed.mac import Mac

GONE = 200.0
"""Seconds without a word after which a rival is gone: three looks of one minute."""
TFTP_LOOKS = 5
"""TFTP servers are asked at each fifth look only: each question is a line in their logs."""
_MOST = 256  # a hostile segment must not fill our memory


class What(StrEnum):
    """What a rival does that we do too."""

    DHCP = "dhcp"  # leases addresses
    BOOT = "boot"  # tells firmware what to boot, with or without an address
    TFTP = "tftp"  # serves files
    AOE = "aoe"  # serves disks at our AoE addresses


@dataclass(slots=True)
class Finding:
    """One rival in one role; ``serious``: machines will not boot as they should."""

    what: What
    mac: Mac
    ip: str
    offer: str
    consequence: str
    serious: bool
    since: float
    seen: float
    asks_4011: bool = False

    def event(self) -> Event:
        """The event that tells of it."""
        detail = {
            "what": str(self.what),
            "rival": self.mac,
            "ip": self.ip,
            "offer": self.offer,
            "consequence": self.consequence,
            "serious": self.serious,
        }
        return Event(Kind.RIVAL, None, self.seen, detail)


class Conflicts:
    """The rivals that are known now. ``in_pool`` says whether an address is one of ours to give.

    ``gone``: seconds of silence after which a rival is no longer one. ``mode`` may change,
    and with ``auto`` it follows what is found. ``signed``: whether machines get the chain for
    Secure Boot now.
    """

    def __init__(
        self,
        mode: Mode,
        in_pool: Callable[[IPv4Address], bool],
        *,
        gone: float = GONE,
        auto: bool = False,
        signed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.mode = mode
        self._signed = signed
        self._gone = gone
        self._auto = auto
        self._in_pool = in_pool
        self._found: dict[tuple[What, Mac, str], Finding] = {}
        self._alone = False  # proxy mode without a DHCP server was told

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found.values())

    def dhcp(self, rival: Rival, now: float) -> list[Event]:
        """A DHCP or boot server answered somebody."""
        events = []
        if rival.leases:
            serious, consequence = self._of_dhcp(rival)
            offer = f"address {rival.address}" if rival.address else "addresses"
            events += self._note(What.DHCP, rival.mac, str(rival.ip), offer, consequence,
                                 serious, now)  # fmt: skip
        if rival.boots:
            events += self._note(What.BOOT, rival.mac, str(rival.ip), rival.boot, _BOOTS,
                                 True, now, rival.asks_4011)  # fmt: skip
        return events

    def aoe(self, mac: Mac, addresses: Collection[tuple[int, int]], now: float) -> list[Event]:
        """A target at ``mac`` answers at these of our (shelf, slot) addresses."""
        offer = ", ".join(f"e{shelf}.{slot}" for shelf, slot in sorted(addresses))
        return self._note(What.AOE, mac, "", offer, _AOE, True, now)

    def tftp(self, mac: Mac, ip: IPv4Address, now: float) -> list[Event]:
        """A server at ``ip`` answers read requests."""
        return self._note(What.TFTP, mac, str(ip), "files by TFTP", _TFTP, False, now)

    def swept(self, now: float) -> list[Event]:
        """A look around has ended: who has not been heard for long is gone."""
        events = []
        for key, finding in list(self._found.items()):
            patience = self._gone * (TFTP_LOOKS if finding.what is What.TFTP else 1)
            if now - finding.seen > patience:
                del self._found[key]
                detail = {"what": str(finding.what), "rival": finding.mac, "ip": finding.ip}
                events.append(Event(Kind.RIVAL_GONE, None, now, detail))
        leased = any(finding.what is What.DHCP for finding in self._found.values())
        if self.mode is Mode.PROXY and not (leased or self._alone or self._auto):
            events.append(Event(Kind.ALARM, None, now, {"text": _ALONE}))
        self._alone = not leased
        return events

    def leasing(self) -> Finding | None:
        """A server that gives out addresses; None: nobody."""
        return next((found for found in self if found.what is What.DHCP), None)

    def booter(self) -> Finding | None:
        """A rival that tells firmware what to boot, or else one that leases; None: nobody."""
        for what in (What.BOOT, What.DHCP):
            for finding in self._found.values():
                if finding.what is what:
                    return finding
        return None

    def _note(
        self,
        what: What,
        mac: Mac,
        ip: str,
        offer: str,
        consequence: str,
        serious: bool,
        now: float,
        asks_4011: bool = False,
    ) -> list[Event]:
        key = (what, mac, ip)
        known = self._found.get(key)
        if known is not None:
            known.seen = now
            news = known.serious != serious
            known.serious, known.consequence = serious or known.serious, consequence
            return [known.event()] if news and serious else []
        if len(self._found) >= _MOST:
            return []
        finding = Finding(what, mac, ip, offer, consequence, serious, now, now, asks_4011)
        self._found[key] = finding
        return [finding.event()]

    def _of_dhcp(self, rival: Rival) -> tuple[bool, str]:
        clash = bool(rival.address) and self._in_pool(IPv4Address(rival.address))
        if self.mode is Mode.PROXY or self._auto:
            more = f"; {_SIGNED}" if self._signed() else ""
            return False, f"none: in proxy mode it hands out the addresses{more}"
        if clash:
            return True, (
                f"{rival.address} is in our range too, so two machines may get one address: "
                "set [dhcp] range to addresses that it does not give out"
            )
        if self.mode is Mode.ALL:
            return True, (
                "each machine takes the address of whoever answers first: "
                'stop one of the two, or set [dhcp] mode = "auto"'
            )
        return False, "none as long as its addresses are not in our range: it serves the systems"


_SIGNED = (
    "but x64 UEFI seats that boot by PXE with the chain for Secure Boot need this server as "
    "next-server (siaddr) in its answers; those that boot by UEFI HTTP boot do not"
)
_BOOTS = (
    "firmware may take its offer instead of ours and boot something else, or nothing: "
    "remove its boot options (next-server, file name, options 66, 67 and 43) or stop it"
)
_TFTP = (
    "none by itself: a machine loads from the server that its DHCP answer names; it matters where "
    "a boot server names that one"
)
_AOE = (
    "machines may read their disks from it instead of here: "
    "stop it, or give our class another shelf ([class.x86] shelf)"
)
_ALONE = (
    "proxy mode, and no DHCP server answers on this segment: machines get no address and cannot "
    'boot: start the DHCP server, or set [dhcp] mode = "auto"'
)
