"""Another server at our address: asked for before we answer there.

Linux takes all the targets that answer for one shelf.slot for paths to one disk and uses them in
turn: two different images corrupt silently. Identical read-only ones are fine, and even balance.
A server that shares says so, with the image's digest, in the vendor's words of IDENTIFY.
"""

import contextlib
from collections.abc import Callable, Mapping

import click

from aoe_fast.frames import ANY_SHELF, ANY_SLOT, Device, Identity, InitiatorError
from aoe_fast.initiator import Initiator
from aoe_fast.presence import Seen, neighbours
from aoe_fast.store import Export
from aoe_fast.vblades import vblades

WAIT_S = 0.3
_FEW = 2  # shelves that are asked one by one
_MAGIC = b"\x5d\xaf"
_DIGEST = slice(260, 292)
"""IDENTIFY words 129-159 are the vendor's (ATA/ATAPI-6 8.15): 129 the magic, 130-145 SHA-256."""


def digest_of(identity: Identity) -> bytes | None:
    """The digest of a shared image that IDENTIFY carries, or None."""
    if identity.raw[258:260] != _MAGIC:
        return None
    return identity.raw[_DIGEST]


def check_rivals(interface: str, exports: Mapping[tuple[int, int], Export]) -> None:
    """UsageError if another server on ``interface`` answers for one of these addresses.

    Unless both share the same read-only image. It sees what this machine's own MAC may see: what
    the other server shows to certain clients only stays hidden. A link that is down has no rivals.
    """
    with contextlib.suppress(InitiatorError), Initiator(interface) as initiator:
        for device in _found(initiator, exports):
            export = exports.get((device.shelf, device.slot))
            if export is None:
                continue
            where = f"{device.address} is served on {interface} by {device.mac.hex(':')} already"
            if export.digest is None:
                raise click.UsageError(
                    f"{where}: give another address (or --shared on both, for the same read-only"
                    " image)"
                )
            try:
                theirs = digest_of(initiator.identify_at(device))
            except InitiatorError:
                theirs = None
            if theirs is None:
                raise click.UsageError(
                    f"{where}, and not shared: start that one with --shared and read-only too"
                )
            if theirs != export.digest:
                raise click.UsageError(f"{where}, with another image: clients would mix the two")


def check_neighbours(interface: str, seen: Seen, before: int | None = None) -> None:
    """UsageError if another server of this machine serves one of the addresses on ``interface``.

    Its frames never come back to us, so it is asked by way of ``presence``; only if it began
    ``before`` we did, where that is given. A vblade is not asked: it asked nobody itself.
    """
    for neighbour in (*neighbours(interface, before), *vblades(interface)):
        at = neighbour.clash(seen)
        if at is not None:
            raise click.UsageError(
                f"{at[0]}.{at[1]} is served on {interface} by another {neighbour.who} of this"
                " machine: stop that one, or give another address"
            )


class Lookout:
    """Looks again now and then, while we serve: what came later is an alarm, once."""

    def __init__(self, alarm: Callable[[str], None]) -> None:
        self._alarm = alarm
        self._known: set[str] = set()

    def look(self, *checks: Callable[[], None]) -> None:
        """Do each of ``checks``; tell of what none of them said at the last look."""
        found = set()
        for check in checks:
            try:
                check()
            except click.UsageError as error:
                where = error.message.partition(": ")[0]
                found.add(f"{where}: machines mix the two: stop one of them, or move its address")
        for text in sorted(found - self._known):
            self._alarm(text)
        self._known = found


def _found(initiator: Initiator, exports: Mapping[tuple[int, int], Export]) -> list[Device]:
    shelves = {shelf for shelf, _ in exports}
    if len(exports) > 1 and len(shelves) > _FEW:
        return initiator.discover(ANY_SHELF, ANY_SLOT, wait=WAIT_S)
    found = []
    for shelf in shelves:
        slots = [slot for its, slot in exports if its == shelf]
        slot = slots[0] if len(slots) == 1 else ANY_SLOT
        found += initiator.discover(shelf, slot, wait=WAIT_S)
    return found
