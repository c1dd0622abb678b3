"""Watches for rivals on a segment: a look around every minute, and an ear on what others answer."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection

from aoe_fast import frames
from pxed.conflicts import TFTP_LOOKS, Conflicts
from pxed.dhcp.codec import DhcpError, Op, Type, decode
from pxed.dhcp.rival import seen
from pxed.errors import HostError
from pxed.events import Event
from pxed.mac import Mac, mac_bytes, mac_text
from pxed.net.link import Link
from pxed.net.packet import Instruction, open_raw
from pxed.net.rival import find_rivals, find_tftp, open_replies, payload, read_rest

_log = logging.getLogger("pxed.conflicts")
EVERY = 60.0
_LISTEN = 1.0
_BATCH = 64


class ConflictWatch:
    """Looks on the interface of ``link`` and tells ``emit`` what ``conflicts`` makes of it.

    ``shelves`` are ours; other targets on them are rivals. ``counters``: looks, heard, failed.
    """

    def __init__(
        self,
        link: Link,
        conflicts: Conflicts,
        emit: Callable[[Event], None],
        *,
        shelves: Collection[int],
        every: float = EVERY,
    ) -> None:
        self.conflicts = conflicts
        self.counters: Counter[str] = Counter()
        self._link = link
        self._emit = emit
        self._shelves = frozenset(shelves)
        self._every = every
        self._ear: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the first look does not hold the start up. HostError without the privilege."""
        self._ear = open_replies(self._link)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ear.fileno(), self._hear)
        self._task = loop.create_task(self._look_on())

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._ear is not None:
            asyncio.get_running_loop().remove_reader(self._ear.fileno())
            self._ear.close()
            self._ear = None

    def follow(self, link: Link) -> None:
        """The interface has another address now."""
        self._link = link

    def _hear(self) -> None:
        """Another server's OFFER or ACK to any machine on the segment."""
        assert self._ear is not None
        for _ in range(_BATCH):
            try:
                frame = self._ear.recv(4096)
            except OSError:
                return
            said = payload(frame)
            if said is None or said[0] == self._link.mac:
                continue
            sender, source, data = said
            try:
                message = decode(data)
            except DhcpError:
                continue
            if message.op == Op.REPLY and message.type in (Type.OFFER, Type.ACK):
                self.counters["heard"] += 1
                self._tell(self.conflicts.dhcp(seen(message, sender, source), time.time()))

    async def _look_on(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.counters["looks"] += 1
                for rival in await find_rivals(self._link):
                    self._tell(self.conflicts.dhcp(rival, time.time()))
                if self.counters["looks"] % TFTP_LOOKS == 1:
                    for mac, ip in (await find_tftp(self._link)).items():
                        self._tell(self.conflicts.tftp(mac, ip, time.time()))
                for mac, addresses in (await find_targets(self._link, self._shelves)).items():
                    self._tell(self.conflicts.aoe(mac, addresses, time.time()))
                self._hear()  # what came while the loop was busy is no silence
                self._tell(self.conflicts.swept(time.time()))
            except HostError as error:  # the link is down: there is a next time
                self.counters["failed"] += 1
                _log.debug("%s", error)
            except Exception as error:  # a fault of ours must not end the watch
                self.counters["failed"] += 1
                _log.error("cannot look for rivals: %r", error)
            await asyncio.sleep(max(0.0, self._every - (time.monotonic() - began)))

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self._emit(event)


async def find_targets(
    link: Link, shelves: Collection[int], seconds: float = _LISTEN
) -> dict[Mac, set[tuple[int, int]]]:
    """AoE targets other than ours that answer on ``shelves``: (shelf, slot) by MAC.

    A broadcast config query does not reach our own target. HostError as ``open_raw``.
    """
    tag = int.from_bytes(os.urandom(4), "big")
    raw = open_raw(link, frames.ETHERTYPE, _reply_filter(tag))
    found: dict[Mac, set[tuple[int, int]]] = defaultdict(set)

    def readable() -> bool:
        try:
            reply = frames.parse(raw.recv(2048))
        except OSError:
            return False
        if reply is None or reply.tag != tag or mac_text(reply.src) == link.mac:
            return True
        if reply.shelf in shelves and not reply.failed and len(found) < 64:
            found[mac_text(reply.src)].add((reply.shelf, reply.slot))
        return True

    query = frames.build(
        frames.BROADCAST, mac_bytes(link.mac), frames.ANY_SHELF, frames.ANY_SLOT,
        frames.Command.CONFIG, tag, frames.config_body(),
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    loop.add_reader(raw.fileno(), readable)
    try:
        try:
            raw.send(query)
        except OSError as error:
            raise HostError(f"cannot look for targets on {link.name}: {error.strerror}") from None
        await asyncio.sleep(seconds)
        read_rest(readable)
    finally:
        loop.remove_reader(raw.fileno())
        raw.close()
    return dict(found)


def _reply_filter(tag: int) -> tuple[Instruction, ...]:
    """AoE responses with this tag: the data path's frames never come up here."""
    return (
        (0x28, 0, 0, 12),  # ldh [12]
        (0x15, 0, 5, frames.ETHERTYPE),
        (0x30, 0, 0, 14),  # ldb [14]
        (0x45, 0, 3, 0x08),  # jset: a response
        (0x20, 0, 0, 20),  # ld [20]: the tag
        (0x15, 0, 1, tag),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
