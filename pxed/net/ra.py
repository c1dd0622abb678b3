"""Answers Router Solicitations of machines in their boot phase, so that iPXE need not wait."""

import logging
import time
from collections import Counter
from collections.abc import Callable

from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net import icmpv6
from pxed.net.ear import Ear
from pxed.net.link import Link

_log = logging.getLogger("pxed.ra")


class RouterAdvertiser:
    """On ``link``, for MACs that ``in_boot_phase`` says yes to; needs no IPv6 on the server.

    ``counters``: received, malformed, ignored, replies, send_errors.
    """

    def __init__(
        self, link: Link, in_boot_phase: Callable[[Mac], bool], emit: Callable[[Event], None]
    ) -> None:
        self._link = link
        self._in_boot_phase = in_boot_phase
        self._emit = emit
        self._ear = Ear(link, icmpv6.FILTER, (icmpv6.ALL_ROUTERS,), self._answer)
        self.counters: Counter[str] = Counter()

    async def start(self) -> None:
        """Open the socket; HostError without the privilege."""
        await self._ear.start()

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        await self._ear.close()

    def _answer(self, frame: bytes) -> None:
        self.counters["received"] += 1
        asked = icmpv6.solicitation(frame)
        if asked is None:
            self.counters["malformed"] += 1
            return
        if asked.mac == self._link.mac or not self._in_boot_phase(asked.mac):
            self.counters["ignored"] += 1
            return
        try:
            self._ear.send(icmpv6.advertisement(self._link.mac, asked))
        except OSError as error:
            self.counters["send_errors"] += 1
            _log.info("cannot answer the router solicitation of %s: %s", asked.mac, error.strerror)
            return
        self.counters["replies"] += 1
        _log.debug("router advertisement to %s", asked.mac)
        try:
            self._emit(Event(Kind.ROUTER_ADVERT, asked.mac, time.time()))
        except Exception as error:  # a fault in the listener must not stop the service
            _log.error("event %s of %s: %r", Kind.ROUTER_ADVERT, asked.mac, error)
