"""``pxed size``: what a room needs of its server, before anything is bought."""

import re

import click

from pxed.cli_base import json_option, said, show_json
from pxed.config import parse_size
from pxed.errors import UsageError
from pxed.sizing import LOADED, READ, Room, Sizing, measure
from pxed.table import amount, table

_UNITS = {"M": 1e6, "G": 1e9}


def parse_link(text: str) -> float:
    """Bits a second of ``1G``, ``2.5G`` or ``100M``; UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MG])(?:bit/?s?)?", text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--link {text!r}: write a rate such as 1G, 2.5G or 100M")
    return float(found[1]) * _UNITS[found[2]]


def _bytes(option: str, text: str) -> int:
    try:
        found = parse_size(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}") from None
    if found < 1:
        raise UsageError(f"{option} {text!r}: must be more than nothing")
    return found


@click.command()
@click.option("--clients", type=click.IntRange(1, 65536), required=True, help="Machines that boot.")
@click.option("--link", default="1G", show_default=True, help="The server's link, such as 10G.")
@click.option("--mtu", type=click.IntRange(1500, 9000), default=1500, show_default=True)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True,
              help="[aoe] workers: cores that serve blocks.")  # fmt: skip
@click.option("--loaded", default=f"{LOADED >> 20}M", show_default=True,
              help="Kernel and initrd of one machine, loaded by iPXE.")  # fmt: skip
@click.option("--read", default=f"{READ >> 20}M", show_default=True,
              help="What its system then reads until it runs.")  # fmt: skip
@json_option
@said
def size(
    clients: int, link: str, mtu: int, workers: int, loaded: str, read: str, as_json: bool
) -> None:
    """How long a room takes to boot, and what its server needs: from measured costs.

    The costs are of one machine, so within a factor of two; docs/performance.md says how they were
    measured.
    """
    room = Room(
        clients, parse_link(link), mtu, workers,
        loaded=_bytes("--loaded", loaded), read=_bytes("--read", read),
    )  # fmt: skip
    found = measure(room)
    if as_json:
        show_json(found.as_json())
    else:
        click.echo(text(room, found))


def text(room: Room, found: Sizing) -> str:
    """The answer for people."""
    at_work = found.cpu_s / room.workers
    rows = {
        "storm": f"{_seconds(found.storm_s)} until all {room.clients} run; it waits for "
        f"{found.limit}",
        "link": f"{_seconds(found.link_s)} for {amount(found.link_bytes)} "
        f"at {room.link / 1e9:g} Gbit/s",
        "CPU": f"{_seconds(found.cpu_s)} in all, {found.requests:,} requests; "
        f"workers: {room.workers}, so {_seconds(at_work)}",
        "one client": f"{_seconds(found.one_client_s)} at iPXE's pace, however fast the rest is",
        "ring": f"{found.ring_frames:,} requests, {amount(found.ring_bytes)}: "
        f"[aoe] max_clients = {found.max_clients}",
        "memory": f"{amount(found.memory)}, and {amount(found.page_cache)} of page cache "
        "for what is read",
        "cores": f"{found.cores}: blocks then wait for no CPU, and DHCP has one of its own",
    }
    return table(["", ""], [list(row) for row in rows.items()], header=False)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
