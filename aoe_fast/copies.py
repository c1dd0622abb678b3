"""The initiator's commands: find devices, copy from and to them."""

import contextlib
import json
import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import click

from aoe_fast.exports import human, parse_address, parse_size, shown
from aoe_fast.frames import SECTOR, AtaError, Identity, InitiatorError
from aoe_fast.initiator import Initiator

_PIECE = 1 << 20
_ABRT = 0x04


def check_interface(name: str) -> str:
    """``name`` if there is such an interface; UsageError otherwise."""
    names = [known for _, known in socket.if_nameindex()]
    if name not in names:
        raise click.UsageError(f"no interface {name!r}: there are {', '.join(names)}")
    return name


interface_option = click.option(
    "-i", "--interface", required=True, metavar="IFACE", help="Ethernet interface."
)


class _Seconds(click.FloatRange):
    """0 to an hour; "nan" is no number of seconds, though no bound refuses it."""

    def __init__(self) -> None:
        super().__init__(0.0, 3600.0)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


@click.command()
@interface_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--wait",
    type=_Seconds(),
    default=0.5,
    show_default=True,
    help="Seconds to listen.",
)
def discover(interface: str, as_json: bool, wait: float) -> None:
    """List the devices that answer on IFACE."""
    rows: list[dict[str, Any]] = []
    with Initiator(check_interface(interface)) as initiator:
        for device in initiator.discover(wait=wait):
            identity: Identity | None = None
            with contextlib.suppress(InitiatorError):
                identity = initiator.identify(device.shelf, device.slot)
            rows.append(
                {
                    "address": device.address,
                    "mac": device.mac.hex(":"),
                    "bytes": identity.sectors * SECTOR if identity else None,
                    "model": identity.model if identity else None,
                    "serial": identity.serial if identity else None,
                    "bufcnt": device.bufcnt,
                    "scnt": device.scnt,
                    "firmware": device.firmware,
                    "config": device.config.decode("utf-8", "backslashreplace"),
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"aoe-fast: nothing answers on {interface}", err=True)
    for row in rows:
        size = "?" if row["bytes"] is None else human(row["bytes"])
        click.echo(
            f"{row['address']:<9} {row['mac']} {size:>10}  {shown(row['model'] or '?')}"
            f" {shown(row['config'])}".rstrip()
        )


def _sectors(option: str, size: int) -> int:
    if size % SECTOR:
        raise click.UsageError(f"{option} {size}: give whole sectors, a multiple of {SECTOR}")
    return size // SECTOR


def _bar(length: int, label: str) -> Any:
    """A progress bar on a terminal, silence elsewhere."""
    return click.progressbar(
        length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    )


Pace = Literal["steady", "linux"]
pace_option = click.option(
    "--pace",
    type=click.Choice(["steady", "linux"]),
    default="steady",
    show_default=True,
    help="linux: the window and the timeouts of Linux's own driver.",
)
wait_option = click.option(
    "--wait",
    type=_Seconds(),
    default=60.0,
    show_default=True,
    help="Seconds that the device may leave one request unanswered.",
)
offset_option = click.option(
    "--offset", default="0", metavar="SIZE", help="Where on the device to begin. [0]"
)


@click.command(short_help="Copy a device into FILE.")
@interface_option
@click.argument("address", metavar="SHELF.SLOT")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@offset_option
@click.option("--count", metavar="SIZE", help="How much to copy. [to the end]")
@wait_option
@pace_option
def read(
    interface: str,
    address: str,
    file: Path,
    offset: str,
    count: str | None,
    wait: float,
    pace: Pace,
) -> None:
    """Copy a device into FILE, which is removed again if the copy fails and made it."""
    shelf, slot = parse_address(address)
    first = _sectors("--offset", parse_size(offset))
    wanted = None if count is None else _sectors("--count", parse_size(count))
    with Initiator(check_interface(interface), patience=wait, pace=pace) as initiator:
        size = initiator.identify(shelf, slot).sectors
        many = size - first if wanted is None else wanted
        if first > size or first + many > size:
            raise click.UsageError(f"{address} ends at {size * SECTOR}: copy less")
        existed = file.exists()
        with _opened(file, "wb") as out, contextlib.ExitStack() as stack:
            if not existed:
                undo = stack.enter_context(contextlib.ExitStack())
                undo.callback(file.unlink, missing_ok=True)
            with _bar(many * SECTOR, address) as bar:
                for data in initiator.read_range(shelf, slot, first, many):
                    out.write(data)
                    bar.update(len(data))
            out.flush()
            if not existed:
                undo.pop_all()


@click.command()
@interface_option
@click.argument("address", metavar="SHELF.SLOT")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@offset_option
@click.option("--verify", is_flag=True, help="Read everything back and compare.")
@wait_option
@pace_option
def write(
    interface: str, address: str, file: Path, offset: str, verify: bool, wait: float, pace: Pace
) -> None:
    """Copy FILE onto a device, then flush it."""
    shelf, slot = parse_address(address)
    first = _sectors("--offset", parse_size(offset))
    name = check_interface(interface)
    if file.exists() and not (file.is_file() or file.is_block_device()):
        raise click.UsageError(f"{file}: is not a file or a block device: name one of these")
    with _opened(file, "rb") as source, Initiator(name, patience=wait, pace=pace) as initiator:
        length = source.seek(0, os.SEEK_END)
        source.seek(0)
        many = _sectors(f"{file}: its size", length)
        size = initiator.identify(shelf, slot).sectors
        if first + many > size:
            raise click.UsageError(
                f"{file}: {length} bytes from {offset} on do not fit {address},"
                f" which has {size * SECTOR}"
            )
        with _bar(length, address) as bar:
            try:
                initiator.write_range(
                    shelf,
                    slot,
                    first,
                    iter(lambda: source.read(_PIECE), b""),
                    progress=lambda done: bar.update(done * SECTOR),
                )
            except AtaError as error:
                if error.error & _ABRT:
                    raise click.ClickException(f"{error}: is it exported read-only?") from None
                raise
        try:
            initiator.flush(shelf, slot)
        except AtaError:
            click.echo(f"aoe-fast: {address} has no FLUSH: it may still hold data back", err=True)
        if verify:
            source.seek(0)
            _compare(initiator, (shelf, slot), first, many, source)


def _compare(
    initiator: Initiator, at: tuple[int, int], first: int, many: int, source: BinaryIO
) -> None:
    """ClickException at the first sector of the device that is not as in ``source``."""
    done = first
    with _bar(many * SECTOR, "verify") as bar:
        for data in initiator.read_range(*at, first, many):
            want = source.read(len(data))
            for start in range(0, len(data), SECTOR):
                if data[start : start + SECTOR] != want[start : start + SECTOR]:
                    raise click.ClickException(
                        f"{at[0]}.{at[1]}: sector {done + start // SECTOR} reads back wrong:"
                        " check the disk, and who else writes to it"
                    )
            done += len(data) // SECTOR
            bar.update(len(data))


@contextlib.contextmanager
def _opened(file: Path, mode: str) -> Iterator[Any]:
    try:
        opened = file.open(mode)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}: check the path") from None
    try:
        with opened:
            yield opened
    except OSError as error:
        # A disk that is full or bad: read(2) and write(2) do not say whose.
        error.filename = error.filename or str(file)
        raise
