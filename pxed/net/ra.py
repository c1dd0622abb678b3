"""Answers Router Solicitations of machines in their boot phase, so that iPXE need not wait."""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable

from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net import icmpv6
from pxed.net.link import Link
from pxed.net.packet import ETH_IPV6, open_raw

_log = logging.getLogger("pxed.ra")
_BATCH = 64


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
        self._raw: socket.socket | None = None
        self.counters: Counter[str] = Counter()

    async def start(self) -> None:
        """Open the socket; HostError without the privilege."""
        self._raw = open_raw(self._link, ETH_IPV6, icmpv6.FILTER, (icmpv6.ALL_ROUTERS,))
        asyncio.get_running_loop().add_reader(self._raw.fileno(), self._readable)

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._raw is not None:
            asyncio.get_running_loop().remove_reader(self._raw.fileno())
            self._raw.close()
            self._raw = None

    def _readable(self) -> None:
        assert self._raw is not None
        for _ in range(_BATCH):
            try:
                frame = self._raw.recv(2048)
            except OSError:  # nothing more, or the interface went down
                return
            self._answer(self._raw, frame)

    def _answer(self, raw: socket.socket, frame: bytes) -> None:
        self.counters["received"] += 1
        asked = icmpv6.solicitation(frame)
        if asked is None:
            self.counters["malformed"] += 1
            return
        if asked.mac == self._link.mac or not self._in_boot_phase(asked.mac):
            self.counters["ignored"] += 1
            return
        try:
            raw.send(icmpv6.advertisement(self._link.mac, asked))
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
