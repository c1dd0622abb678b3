"""The ``pxed`` command. Exit status: 0 fine, 1 failed, 2 usage or configuration."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import click

from pxed import __version__, images
from pxed import config as configuration
from pxed.cli_base import (
    DEFAULT_CONFIG,
    config_option,
    json_option,
    load_config,
    said,
    server,
    show_json,
    state_option,
    where,
)
from pxed.cli_group import Commands
from pxed.errors import HostError, UsageError
from pxed.table import ago, amount, table


class _Commands(Commands):
    """Imports a command's module when it is called: no listing waits for what it never uses."""

    others: ClassVar[Mapping[str, str]] = {
        "client": "cli_client", "doctor": "doctor", "image": "cli_image", "ipxe": "cli_ipxe",
        "midlayer": "cli_midlayer", "promote": "cli_promote", "size": "cli_size",
    }  # fmt: skip

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.others])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (module := self.others.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(importlib.import_module(f"pxed.{module}"), cmd_name)
        return found


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pxed")
def main() -> None:
    """Network-boot server for diskless labs."""


@main.command()
@config_option
@click.option("-i", "--interface", help="Network interface to serve; wins over the file's.")
@click.option("--state-dir", type=click.Path(path_type=Path, readable=False),
              help="Wins over the file's.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log every packet that was acted on.")
@said
def serve(
    config_path: Path | None, interface: str | None, state_dir: Path | None, verbose: bool
) -> None:
    """Serve one Ethernet segment until SIGTERM or Ctrl-C."""
    import logging

    # The compiled data path and uvloop: only where they are used.
    from aoe_fast.notify import log_to_stderr
    from pxed import app, privileges

    if state_dir is not None and not state_dir.is_absolute():
        raise UsageError(f"--state-dir {state_dir}: must be an absolute path")

    def read() -> configuration.Config:
        read_now = load_config(config_path, interface)
        return configuration.with_state_dir(read_now, state_dir) if state_dir else read_now

    config = read()
    log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("pyroute2").setLevel(logging.WARNING)  # it would log whole netlink messages
    privileges.settle(config, images.served_in_place(config.images_dir))
    app.run(config, read)
    # Everything is synced and closed. Python's own end takes a tenth of a second for what the
    # kernel does anyway, and at a restart clients wait for it.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


@main.command()
@config_option
@state_option
@json_option
@said
def status(config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """What the running server does: interface, DHCP, images, AoE counters."""
    got = server(state_dir, config_path).get("/v1/status")
    if as_json:
        click.echo(json.dumps(got, indent=2))
        return
    auto = " (auto)" if got["dhcp"]["configured"] == "auto" else ""
    lines = [
        ("serving", f"{got['interface']} ({got['mac']}, {got['ip']}, MTU {got['mtu']})"),
        ("since", f"{ago(got['uptime'])} ago, pid {got['pid']}"),
        ("dhcp", f"{got['dhcp']['mode']}{auto}, {_addresses(got['dhcp'])}"),
        *((f"image {k}", v) for k, v in got["images"].items()),
        ("midlayers", (f"{got['midlayers']['count']} of {amount(got['midlayers']['size'])}, "
                      f"{got['midlayers']['durability']}")),
        ("clients", _clients(got)),
        ("aoe", (f"{got['aoe']['frames']} frames, {amount(got['aoe']['read_bytes'])} read, "
                f"{amount(got['aoe']['written_bytes'])} written, {got['aoe']['drops']} dropped")),
    ]  # fmt: skip
    if any(lost := (got["dhcp"]["dropped"], got["tftp"]["dropped"])):
        lines.append(("overrun", f"{lost[0]} DHCP messages, {lost[1]} TFTP requests dropped"))
    click.echo(table(["", ""], [list(line) for line in lines], header=False))
    if wrong := got.get("disk"):
        click.echo(f"\ndisk: nothing is kept any more, and seats start degraded: {wrong}")
    for each in got["conflicts"]:  # never cut: it says what to do
        click.echo(f"\nconflict: {_conflict(each)}")


def _clients(got: dict[str, Any]) -> str:
    """How many are in which state, and how many of them keep nothing of what they write."""
    lost = f" ({n} degraded: pxed client list)" if (n := got.get("degraded")) else ""
    return (", ".join(f"{n} {s}" for s, n in got["clients"].items()) or "none yet") + lost


def _addresses(dhcp: dict[str, Any]) -> str:
    """The range, and what is left of it; a proxy gives no addresses."""
    left = f", {dhcp['free']} of {dhcp['size']} free" if dhcp["mode"] != "proxy" else ""
    return f"{dhcp['range']}{left}"


def _conflict(each: dict[str, Any]) -> str:
    kind = {
        "dhcp": "DHCP server",
        "boot": "boot server",
        "tftp": "TFTP server",
        "aoe": "AoE target",
    }[each["what"]]
    where = f"{each['ip']} ({each['rival']})" if each["ip"] else each["rival"]
    return f"{kind} {where}, offers {each['offer']}: {each['consequence']}"


@main.command("event")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--since", help="From this time on: 10m, 12h, 2d, or 2026-11-23[ 14:30[:00]].")
@json_option
@where
def event(
    follow: bool,
    since: str | None,
    as_json: bool,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """The event log, oldest entry first."""
    from pxed.eventlog import line_of

    query = [f"since={_since(since)}"] if since else []
    query += ["follow=1"] if follow else []
    what = "/v1/events" + ("?" + "&".join(query) if query else "")
    for entry in server(state_dir, config_path).follow(what):
        click.echo(json.dumps(entry) if as_json else _event_line(entry, line_of))


def _since(text: str) -> float:
    try:
        return time.time() - configuration.parse_span(text)
    except ValueError:
        pass
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"):
        try:
            return time.mktime(time.strptime(text.replace("T", " "), form))
        except ValueError:
            continue
    raise UsageError(f"--since {text!r}: write 10m, 12h, 2d, or 2026-11-23 14:30")


def _event_line(entry: dict[str, Any], line_of: Callable[[dict[str, Any]], str]) -> str:
    when, today = time.localtime(entry["time"]), time.localtime()
    day = "" if when[:3] == today[:3] else time.strftime("%Y-%m-%d ", when)
    stamp = day + time.strftime("%H:%M:%S", when)
    known = ("id", "time", "kind", "mac")
    rest = line_of({key: value for key, value in entry.items() if key not in known})
    clock = f"{stamp}.{int(entry['time'] % 1 * 1000):03d}"
    return f"{clock} {entry['mac'] or '-':17} {entry['kind']:14} {rest}"


@main.group("config", cls=Commands)
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("check")
@config_option
@said
def config_check(config_path: Path | None) -> None:
    """Check the configuration file without starting anything."""
    if config_path is None and not DEFAULT_CONFIG.exists():
        raise UsageError(f"{DEFAULT_CONFIG}: no such file: write it, or name another with -c")
    checked = load_config(config_path)
    click.echo(f"the configuration is valid: {checked.interface}, state in {checked.state_dir}")
    click.echo("whether this machine has what it names: pxed doctor")


@config_group.command("reload")
@click.option("--dry-run", is_flag=True, help="Only say what it would change.")
@json_option
@where
def config_reload(
    dry_run: bool, as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Let the running server take over its configuration file, all of it or nothing."""
    asked = server(state_dir, config_path)
    found = asked.get("/v1/config/diff")
    if not as_json:
        for change in found["changes"]:
            restart = "" if change["live"] else "  (needs a restart)"
            click.echo(f"{change['key']}: {change['old']} -> {change['new']}{restart}")
    if not dry_run:
        found = asked.post("/v1/config/reload")
    if as_json:
        show_json(found)
    elif not found["changes"]:
        click.echo("nothing was changed in the configuration")
    else:
        click.echo("not taken over (--dry-run)" if dry_run else "taken over")


@main.command()
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), default="bios", show_default=True)
@click.option("--clients", type=click.IntRange(1, 32), default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Leave it up and give the first client's console.")
@click.option("--timeout", type=click.IntRange(5, 3600), default=180, show_default=True,
              help="Seconds until a client that does not run counts as failed.")  # fmt: skip
@json_option
@said
def demo(
    firmware: Literal["bios", "uefi"], clients: int, keep: bool, timeout: int, as_json: bool
) -> None:
    """A private lab on this machine: a server, and clients without disks that boot from it.

    Needs root and QEMU. Everything is in network namespaces of its own and gone afterwards.
    """
    from pxed.lab import demo as lab_demo

    if keep and as_json:
        raise UsageError("--keep and --json do not go together: a console is no JSON")
    if not lab_demo.run(firmware, clients, keep=keep, timeout=timeout, as_json=as_json):
        raise HostError("not every client came to run: see above")


if __name__ == "__main__":
    main()
