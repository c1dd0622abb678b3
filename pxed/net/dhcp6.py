"""Hears machines that ask for a network boot by DHCPv6; nothing is ever answered."""

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable

from pxed.dhcp.solicit6 import ALL_AGENTS, PORT, solicit
from pxed.events import Event, Kind
from pxed.net.ear import Ear
from pxed.net.link import Link
from pxed.net.packet import ETH_IPV6, Instruction

_log = logging.getLogger("pxed.dhcp6")

# Ethernet type IPv6, next header UDP, destination port 547.
_FILTER: tuple[Instruction, ...] = (
    (0x28, 0, 0, 12),  # ldh [12]
    (0x15, 0, 5, ETH_IPV6),
    (0x30, 0, 0, 20),  # ldb [20]
    (0x15, 0, 3, socket.IPPROTO_UDP),
    (0x28, 0, 0, 56),  # ldh [56]
    (0x15, 0, 1, PORT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class SolicitEar:
    """Tells ``emit`` of each boot firmware's SOLICIT on ``link``. ``counters``: received, boots."""

    def __init__(self, link: Link, emit: Callable[[Event], None]) -> None:
        self.counters: Counter[str] = Counter()
        self._link = link
        self._emit = emit
        self._ear = Ear(link, _FILTER, (ALL_AGENTS,), self._hear)

    async def start(self) -> None:
        """Open the socket; HostError without the privilege."""
        await self._ear.start()

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        await self._ear.close()

    def _hear(self, frame: bytes) -> None:
        self.counters["received"] += 1
        asked = solicit(frame)
        if asked is None or asked.mac == self._link.mac:
            return
        self.counters["boots"] += 1
        detail = {"firmware": str(asked.firmware), "arch": asked.arch}
        try:
            self._emit(Event(Kind.SOLICIT6, asked.mac, time.time(), detail))
        except Exception as error:  # a fault in the listener must not stop the service
            _log.error("event %s of %s: %r", Kind.SOLICIT6, asked.mac, error)
