"""Another server at our address: asked for before we answer there.

Linux takes all the targets that answer for one shelf.slot for paths to one disk and uses them in
turn: two different images corrupt silently. Identical read-only ones are fine, and even balance.
A server that shares says so, with the image's digest, in the vendor's words of IDENTIFY.
"""

import contextlib
from collections.abc import Mapping

import click

from aoe_fast.control import ask, default_path
from aoe_fast.exports import parse_address
from aoe_fast.frames import ANY_SHELF, ANY_SLOT, Device, Identity, InitiatorError
from aoe_fast.initiator import Initiator
from aoe_fast.store import Export

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


def check_neighbours(interface: str, macs: Mapping[tuple[int, int], set[str] | None]) -> None:
    """UsageError if another aoe-fast on this machine serves one of the addresses on ``interface``.

    Its frames never come back to us, so it is asked through its usual control socket. ``macs``:
    the machines that are to see each address, None for all.
    """
    try:
        answer = ask(default_path(interface), {"command": "list"})
    except click.ClickException:
        return
    for row in answer.get("exports", ()):
        at = parse_address(row["address"])
        if at not in macs:
            continue
        ours, theirs = macs[at], set(row["macs"]) or None
        if ours is None or theirs is None or ours & theirs:
            raise click.UsageError(
                f"{row['address']} is served on {interface} by another aoe-fast of this machine"
                f" ({row['path']}): stop that one, or give another address"
            )


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
