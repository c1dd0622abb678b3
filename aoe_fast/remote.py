"""The commands that talk to a running ``aoe-fast serve``: stat, and export list|add|remove|set."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

from aoe_fast.control import ask, default_path
from aoe_fast.exports import human, parse_address, parse_export, parse_mac, shown
from aoe_fast.stats import prometheus

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE_S = 600
"""Hashing an image to share, or syncing one to remove, takes as long as its disk."""


def _of_running(command: Callable[P, T]) -> Callable[P, T]:
    """The options that name a running server."""
    command = click.option("--control", metavar="PATH", help="Its control socket.")(command)
    return click.option(
        "-i", "--interface", metavar="IFACE", help="Interface of the running server."
    )(command)


def _socket_of(interface: str | None, control: str | None) -> str:
    if control is None and interface is None:
        raise click.UsageError("name the server: -i IFACE or --control PATH")
    return control or default_path(str(interface))


@click.command()
@_of_running
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--prometheus", "as_prometheus", is_flag=True, help="Print Prometheus text.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def stat(
    interface: str | None, control: str | None, as_json: bool, as_prometheus: bool, watch: bool
) -> None:
    """Show what a running `aoe-fast serve` has done."""
    if as_json and as_prometheus:
        raise click.UsageError("--json or --prometheus, not both")
    where = _socket_of(interface, control)
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        _stat(where, as_json, as_prometheus, watch)


def _stat(where: str, as_json: bool, as_prometheus: bool, watch: bool) -> None:
    before: tuple[float, int] | None = None
    while True:
        answer = ask(where, {"command": "stat"})
        frames = sum(worker["frames"] for worker in answer["workers"])
        rate = None
        if before is not None and answer["uptime_s"] > before[0]:
            rate = (frames - before[1]) / (answer["uptime_s"] - before[0])
        before = answer["uptime_s"], frames
        if as_json:
            click.echo(json.dumps(answer))
        elif as_prometheus:
            click.echo(prometheus(answer), nl=False)
        else:
            _show(answer, clear=watch, rate=rate)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(1)


def _show(answer: dict[str, Any], *, clear: bool, rate: float | None) -> None:
    if clear and sys.stdout.isatty():
        click.clear()
    workers = answer["workers"]
    total = {name: sum(worker[name] for worker in workers) for name in workers[0]}
    pace = "" if rate is None else f" ({rate:.0f}/s)"
    click.echo(
        f"{', '.join(answer['interfaces'])}: up {answer['uptime_s']:.0f} s,"
        f" {total['frames']} frames{pace}, {total['replies']} replies, {total['ignored']} ignored,"
        f" {total['drops']} dropped, {total['repeats']} repeated"
    )
    for port in answer["ports"]:
        if not port["serving"]:
            click.echo(f"{port['interface']}: not served: the interface is gone or unusable")
    for text in (*answer["links"], *answer["moved"]):
        click.echo(text)
    latency = f"{'P50 us':>9}{'P99 us':>9}"
    click.echo(
        f"{'MAC':<18}{'DEVICE':<10}{'READS':>9}{'':>11}{'WRITES':>9}{'':>11}{'ERRORS':>7}{latency}"
    )
    for row in answer["exports"]:
        address = f"{row['shelf']}.{row['slot']}"
        click.echo(
            f"{row['mac'] or 'everybody':<18}{address:<10}"
            f"{row['reads']:>9}{human(row['read_bytes']):>11}"
            f"{row['writes']:>9}{human(row['written_bytes']):>11}"
            f"{sum(row['errors'].values()):>7}{row['p50_us']:>9.0f}{row['p99_us']:>9.0f}"
        )
    if answer["clients"]:
        click.echo(
            f"{'CLIENT':<18}{'ON':<10}{'REQUESTS':>9}{'':>11}{'REPEATS':>9}{'TOO MANY':>11}"
            f"{'ERRORS':>7}{latency}"
        )
    for row in answer["clients"]:
        click.echo(
            f"{row['mac']:<18}{row['interface']:<10}{row['requests']:>9}{human(row['bytes']):>11}"
            f"{row['repeats']:>9}{row['postponed']:>11}{sum(row['errors'].values()):>7}"
            f"{row['p50_us']:>9.0f}{row['p99_us']:>9.0f}"
            + ("  long frames are lost: check the MTU on the way" * row["mtu_black_hole"])
        )


@click.group()
def export() -> None:
    """Change what a running `aoe-fast serve` serves."""


@export.command("list", short_help="List the exports and what clients have set.")
@_of_running
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_exports(interface: str | None, control: str | None, as_json: bool) -> None:
    """List the exports with their config strings, masks and reservations."""
    rows = ask(_socket_of(interface, control), {"command": "list"})["exports"]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        words = [row["durability"] or "ro", *(f"for {mac}" for mac in row["macs"])]
        words += [f"config {row['config']!r}"] if row["config"] else []
        words += [f"file {row['file']}: served as it was"] if row["file"] else []
        words += [f"file {row['resized']} now: served as it was"] if row["resized"] else []
        words += [f"masked to {mac}" for mac in row["mask"]]
        words += [f"reserved by {mac}" for mac in row["reserved_by"]]
        click.echo(
            f"{row['address']:<9} {human(row['bytes']):>10}  {shown(row['path'])}"
            f" ({', '.join(words)})"
        )


@export.command("add")
@_of_running
@click.argument("export", metavar="SHELF.SLOT=PATH[,OPTION...]")
def add_export(interface: str | None, control: str | None, export: str) -> None:
    """Serve one more image; options as for `aoe-fast serve --export`."""
    parse_export(export)
    address, _, rest = export.partition("=")
    answer = ask(
        _socket_of(interface, control),
        # The server's folder is another one.
        {"command": "add", "export": f"{address}={os.path.abspath(rest)}"},
        patience=_PATIENCE_S,
    )
    click.echo(f"aoe-fast: added {answer['added']}")
    if answer.get("warning"):
        click.echo(f"aoe-fast: {answer['warning']}", err=True)


@export.command("remove")
@_of_running
@click.argument("address", metavar="SHELF.SLOT")
@click.option("--mac", "macs", multiple=True, metavar="MAC", help="Only what this machine sees.")
def remove_export(
    interface: str | None, control: str | None, address: str, macs: tuple[str, ...]
) -> None:
    """Stop serving an address; what was written is synced first."""
    parse_address(address)
    for mac in macs:
        parse_mac(mac)
    request = {"command": "remove", "address": address, "macs": list(macs)}
    _check_saved(ask(_socket_of(interface, control), request, patience=_PATIENCE_S))


def _check_saved(answer: dict[str, Any]) -> None:
    """ClickException if the server has settings that are not in its state file."""
    if answer.get("unsaved"):
        raise click.ClickException(
            f"done, but {answer['unsaved']}: make room, or it is lost when the server ends"
            " (saving is tried again every second)"
        )


@export.command("set")
@_of_running
@click.argument("address", metavar="SHELF.SLOT")
@click.option("--config", metavar="TEXT", help='The config string; "" clears it.')
@click.option("--mask", metavar="MAC,...", help='Who may see it; "" for everybody.')
@click.option("--reserve", metavar="MAC,...", help='Who holds it; "" releases it.')
def set_export(
    interface: str | None,
    control: str | None,
    address: str,
    config: str | None,
    mask: str | None,
    reserve: str | None,
) -> None:
    """Override what clients have set over the wire."""
    parse_address(address)
    request: dict[str, Any] = {"command": "set", "address": address}
    if config is not None:
        request["config"] = config
    for name, text in (("mask", mask), ("reserved_by", reserve)):
        if text is not None:
            request[name] = [mac for mac in text.split(",") if mac]
            for mac in request[name]:
                parse_mac(mac)
    if len(request) == 2:
        raise click.UsageError("set what? --config, --mask or --reserve")
    _check_saved(ask(_socket_of(interface, control), request, patience=_PATIENCE_S))
