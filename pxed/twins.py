"""One address at two places: a machine that asks to boot while its system goes on using its disks.

Between its firmware's DISCOVER and the ACK that it gets, a machine has loaded nothing yet, so
nothing on it can speak AoE. If its address does, there are two machines with one address, or one of
them borrows it. No packet proves which; a person must look. Sans-IO.
"""

from pxed.events import Event, Kind
from pxed.mac import Mac

MARGIN = 0.05
"""Seconds: frames that were on their way when the machine was reset."""
TOO_OLD = 60.0
AGAIN = 60.0
LIMIT = 10_000


class Twins:
    """Hears every event; ``heard`` returns a line for people when an address is at two places."""

    def __init__(self) -> None:
        self._asked: dict[Mac, float] = {}
        self._told: dict[Mac, float] = {}

    def heard(self, event: Event, last_aoe: float | None) -> str | None:
        """``last_aoe``: when this address was last heard over AoE, by the events' clock."""
        mac = event.mac
        if mac is None:
            return None
        if event.kind is Kind.DISCOVER and event.detail.get("firmware"):
            if len(self._asked) >= LIMIT:
                self._asked.clear()
            self._asked[mac] = event.time
            return None
        if event.kind is not Kind.ACK:
            return None
        asked = self._asked.pop(mac, None)
        if asked is None or last_aoe is None or event.time - asked > TOO_OLD:
            return None
        if last_aoe <= asked + MARGIN or event.time - self._told.get(mac, -AGAIN) < AGAIN:
            return None
        if len(self._told) >= LIMIT:
            self._told.clear()
        self._told[mac] = event.time
        return (
            f"{mac} asks to boot while it goes on using its disks: two machines have this address, "
            "or one borrows it; look where the switch sees it"
        )
