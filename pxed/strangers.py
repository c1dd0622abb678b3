"""Machines that asked to boot and did nothing else yet: how much is done for them on trust. Pure.

A DISCOVER costs whoever sends it nothing, a REQUEST little, and their address can be made up. So
only so many strangers get their devices before they have taken what they were offered, and so many
who took it before they have used it; only so many are remembered, and their events fill the log
only so fast. A room of new seats is below all of these limits.
"""

from collections import OrderedDict

from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.seat import Client, Stage, State

TRUST = 256  # that get their devices at their first DISCOVER
TAKEN = 1024  # and with their REQUEST
MOST = 1024  # that are remembered for longer than a minute
AT_ALL = 8192
YOUNG = 60.0  # seconds
LOG_BURST = 10_000.0  # events of theirs: a thousand new seats make eight each
LOG_RATE = 2.0  # and so many each second after that

_TAKES = frozenset((Kind.REQUEST, Kind.ACK))
_PROOF = frozenset((
    Kind.TFTP_READ, Kind.TFTP_DONE, Kind.TFTP_PROBE, Kind.TFTP_MISSING,
    Kind.TFTP_FAILED, Kind.HTTP_READ, Kind.HTTP_DONE, Kind.HTTP_MISSING, Kind.HTTP_FAILED,
    Kind.AOE_FOUND, Kind.AOE_READ, Kind.AOE_WRITE, Kind.REPORT,
))  # fmt: skip

_WORDS = (Stage.DISCOVER, Stage.OFFER, Stage.IPXE)  # a DISCOVER can say that it is iPXE's

CLAIMED = frozenset(kind.value for kind in _PROOF | _TAKES)
"""Of no machine, if their address is nobody's: a stranger's, as anybody can make one up."""


def is_stranger(client: Client) -> bool:
    """Nothing is known of it but that somebody asked in its name, once, or took an address."""
    return (
        client.boots <= 1
        and client.state in (State.SEEN, State.OFFERED, State.BOOTING, State.FAILED)
        and all(step.stage in _WORDS for step in client.timeline)
        and not (client.name or client.note or client.groups or client.admission or client.order
                 or client.once or client.fresh or client.macs)
    )  # fmt: skip


def proves(event: Event) -> bool:
    """Whether only a machine that is there could have caused this event."""
    return event.kind in _PROOF


def takes(event: Event) -> bool:
    """Whether somebody took what the machine was offered, which may be made up too."""
    return event.kind in _TAKES


class Strangers:
    """Who was trusted, or has taken its offer, has devices; the others wait for their next word."""

    def __init__(self) -> None:
        self._since: OrderedDict[Mac, float] = OrderedDict()  # oldest first
        self._trusted: set[Mac] = set()
        self._taken: OrderedDict[Mac, float] = OrderedDict()  # oldest first
        self._room, self._filled = LOG_BURST, 0.0
        self.unlogged = self.left_out = 0

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, mac: object) -> bool:
        return mac in self._since

    def asks(self, mac: Mac, now: float) -> bool:
        """A machine that nothing is known of asks; whether it gets its devices at once."""
        self._since[mac] = now
        self._since.move_to_end(mac)
        if mac in self._taken:
            return True
        if mac not in self._trusted and len(self._trusted) >= TRUST:
            return False
        self._trusted.add(mac)
        return True

    def hears(self, mac: Mac, now: float) -> None:
        """One says something that gets it no devices."""
        self._since.setdefault(mac, now)

    def takes(self, mac: Mac, now: float) -> bool:
        """One takes its offer; True if its devices have still to be made."""
        if mac not in self._since or mac in self._taken or len(self._taken) >= TAKEN:
            return False
        waits = mac not in self._trusted
        self._trusted.discard(mac)
        self._taken[mac] = self._since[mac] = now
        self._since.move_to_end(mac)
        return waits

    def proven(self, mac: Mac) -> bool:
        """It is there; True if its devices have still to be made."""
        waits = mac in self._since and mac not in self._trusted and mac not in self._taken
        self.forget(mac)
        return waits

    def too_many(self, now: float) -> list[Mac]:
        """Those to forget: the longest silent ones beyond what is remembered."""
        gone: list[Mac] = []
        for mac, since in self._since.items():
            left = len(self._since) - len(gone)
            if left <= MOST or (left <= AT_ALL and now - since < YOUNG):
                break
            gone.append(mac)
        for count, (mac, since) in enumerate(self._taken.items()):
            if len(self._taken) - count <= TAKEN // 2 or now - since < YOUNG:
                break
            gone.append(mac)
        gone = list(dict.fromkeys(gone))
        for mac in gone:
            self.forget(mac)
        return gone

    def forget(self, mac: Mac) -> None:
        """It is no more; unknown ones are fine."""
        self._since.pop(mac, None)
        self._trusted.discard(mac)
        self._taken.pop(mac, None)

    def may_log(self, now: float) -> bool:
        """Whether one more event of theirs goes into the log; both counters count those not."""
        self._room = min(LOG_BURST, self._room + max(now - self._filled, 0.0) * LOG_RATE)
        self._filled = now
        if self._room < 1:
            self.unlogged += 1
            self.left_out += 1
            return False
        self._room -= 1
        return True
