"""The ``pxed`` command. Exit status: 0 fine, 1 failed, 2 usage or configuration."""

import functools
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec

import click

from pxed import __version__
from pxed import config as configuration
from pxed.control import ControlClient
from pxed.errors import HostError, PxedError, UsageError
from pxed.mac import parse_mac
from pxed.table import ago, amount, table

P = ParamSpec("P")

DEFAULT_CONFIG = Path("/etc/pxed/pxed.toml")
DEFAULT_STATE = configuration.Config(interface="").state_dir


def said(command: Callable[P, None]) -> Callable[P, None]:
    """Turns the errors that pxed raises on purpose into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except PxedError as error:
            click.echo(f"pxed: {error}", err=True)
            sys.exit(error.exit_status)
        except KeyboardInterrupt:
            click.echo("pxed: interrupted", err=True)
            sys.exit(130)

    return run


state_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help=f"State directory of the running server.  [default: from -c, else {DEFAULT_STATE}]",
)
config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help=f"Configuration file.  [default: {DEFAULT_CONFIG} if it exists]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pxed")
def main() -> None:
    """Network-boot server for diskless labs."""


def _load(config_path: Path | None, interface: str | None = None) -> configuration.Config:
    if config_path is None and DEFAULT_CONFIG.exists():
        config_path = DEFAULT_CONFIG
    if config_path is not None:
        return configuration.load(config_path, interface=interface)
    return configuration.parse("", "command line", interface=interface)


def _state_dir(state_dir: Path | None, config_path: Path | None = None) -> Path:
    if state_dir is not None:
        return state_dir
    if config_path is not None or DEFAULT_CONFIG.exists():
        return _load(config_path, interface="any").state_dir
    return DEFAULT_STATE


def _server(state_dir: Path | None, config_path: Path | None = None) -> ControlClient:
    state = _state_dir(state_dir, config_path)
    return ControlClient(configuration.Config(interface="", state_dir=state).control_socket)


@main.command()
@config_option
@click.option("-i", "--interface", help="Network interface to serve; wins over the file's.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Wins over the file's.")
@click.option("-v", "--verbose", is_flag=True, help="Log every packet that was acted on.")
@said
def serve(
    config_path: Path | None, interface: str | None, state_dir: Path | None, verbose: bool
) -> None:
    """Serve one Ethernet segment until SIGTERM or Ctrl-C."""
    from pxed import app  # the compiled data path and uvloop: only where they are used

    config = _load(config_path, interface)
    if state_dir is not None:
        if not state_dir.is_absolute():
            raise UsageError(f"--state-dir {state_dir}: must be an absolute path")
        config = configuration.with_state_dir(config, state_dir)
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("pyroute2").setLevel(logging.WARNING)  # it would log whole netlink messages
    app.run(config)


@main.command()
@config_option
@state_option
@json_option
@said
def status(config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """What the running server does: interface, DHCP, images, AoE counters."""
    got = _server(state_dir, config_path).get("/v1/status")
    if as_json:
        click.echo(json.dumps(got, indent=2))
        return
    lines = [
        ("serving", f"{got['interface']} ({got['mac']}, {got['ip']}, MTU {got['mtu']})"),
        ("since", f"{ago(got['uptime'])} ago, pid {got['pid']}"),
        ("dhcp", f"{got['dhcp']['mode']}, {got['dhcp']['range']}"),
        *((f"image {k}", v) for k, v in got["images"].items()),
        ("midlayers", (f"{got['midlayers']['count']} of {amount(got['midlayers']['size'])}, "
                      f"{got['midlayers']['durability']}")),
        ("clients", ", ".join(f"{n} {s}" for s, n in got["clients"].items()) or "none yet"),
        ("aoe", (f"{got['aoe']['frames']} frames, {amount(got['aoe']['read_bytes'])} read, "
                f"{amount(got['aoe']['written_bytes'])} written, {got['aoe']['drops']} dropped")),
    ]  # fmt: skip
    click.echo(table(["", ""], [list(line) for line in lines], header=False))


@main.group()
def client() -> None:
    """Look at clients."""


@client.command("list")
@config_option
@state_option
@json_option
@said
def client_list(config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """All clients that were ever seen."""
    clients = _server(state_dir, config_path).get("/v1/clients")
    if as_json:
        click.echo(json.dumps(clients, indent=2))
        return
    if not clients:
        click.echo("no client was seen yet")
        return
    now = time.time()
    rows = [
        [c["mac"], c["name"], c["state"], c["stage"] or "", c["firmware"], c["ip"], c["image"],
         f"{ago(now - c['last_seen'])} ago", c["why"]]
        for c in clients
    ]  # fmt: skip
    heads = ["MAC", "NAME", "STATE", "STAGE", "FIRMWARE", "IP", "IMAGE", "HEARD", "WHY"]
    click.echo(table(heads, rows))


@client.command("show")
@click.argument("mac")
@config_option
@state_option
@json_option
@said
def client_show(mac: str, config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """One client and the timeline of its current or last boot."""
    got = _server(state_dir, config_path).get(f"/v1/clients/{_mac(mac)}")
    if as_json:
        click.echo(json.dumps(got, indent=2))
        return
    words = [got["mac"], got["name"], got["state"], got["image"], got["why"]]
    click.echo("  ".join(word for word in words if word))
    rows = [[f"{s['seconds']:8.3f} s", s["stage"], s["detail"]] for s in got["timeline"]]
    click.echo(table(["AFTER", "STAGE", ""], rows))


def _mac(text: str) -> str:
    try:
        return parse_mac(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


@main.command("event")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@config_option
@state_option
@json_option
@said
def event(follow: bool, config_path: Path | None, state_dir: Path | None, as_json: bool) -> None:
    """The latest events."""
    query = "/v1/events" + ("?follow=1" if follow else "")
    for entry in _server(state_dir, config_path).follow(query):
        click.echo(json.dumps(entry) if as_json else _event_line(entry))


def _event_line(entry: dict[str, Any]) -> str:
    stamp = time.strftime("%H:%M:%S", time.localtime(entry["time"]))
    known = ("time", "kind", "mac")
    rest = " ".join(f"{k}={v}" for k, v in entry.items() if k not in known and v not in ("", None))
    clock = f"{stamp}.{int(entry['time'] % 1 * 1000):03d}"
    return f"{clock} {entry['mac'] or '-':17} {entry['kind']:14} {rest}"


@main.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("check")
@config_option
@said
def config_check(config_path: Path | None) -> None:
    """Check the configuration file without starting anything."""
    checked = _load(config_path)
    click.echo(f"the configuration is valid: {checked.interface}, state in {checked.state_dir}")


@main.group("image")
def image_group() -> None:
    """Make images."""


@image_group.group("build")
def image_build() -> None:
    """Build an image from Debian's packages."""


@image_build.command("minimal")
@click.option("--name", default="lab", show_default=True, help="Name of the image.")
@click.option("--version", help="Its version.  [default: today's, YYYY.MM.DD]")
@config_option
@state_option
@said
def image_build_minimal(
    name: str, version: str | None, config_path: Path | None, state_dir: Path | None
) -> None:
    """A busybox system on Debian's cloud kernel: what the demo boots."""
    from pxed.client import minimal

    version = version or time.strftime("%Y.%m.%d")
    target = _new_image(name, version, _state_dir(state_dir, config_path))
    minimal.build_minimal(target, name=name, version=version, progress=_progress)
    click.echo(f"image {name}@{version} is ready in {target}")


@image_build.command("debian")
@click.option("--release", default="bookworm", show_default=True, help="Debian's code name.")
@click.option("-p", "--package", "packages", multiple=True, help="One more package; repeatable.")
@click.option(
    "--script",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Program to run in the new root, as root, when the packages are there.",
)
@click.option("--user", default="", help="An account without a password, with sudo.")
@click.option("--locale", default="C.UTF-8", show_default=True)
@click.option("--kernel", default="linux-image-amd64", show_default=True, help="Kernel package.")
@click.option("--mirror", help="Debian mirror, such as one day's snapshot.  [default: Debian's]")
@click.option("--cmdline", default="", help="Added to the kernel command line.")
@click.option("--compression", type=click.Choice(["zstd", "lz4"]), default="zstd",
              show_default=True)  # fmt: skip
@click.option("--initramfs", type=click.Choice(["initramfs-tools", "dracut"]),
              default="initramfs-tools", show_default=True)  # fmt: skip
@click.option("--refresh", is_flag=True, help="Fetch today's packages again.")
@click.option("--name", default="debian", show_default=True, help="Name of the image.")
@click.option("--version", help="Its version.  [default: today's, YYYY.MM.DD]")
@config_option
@state_option
@said
def image_build_debian(
    name: str,
    version: str | None,
    script: Path | None,
    config_path: Path | None,
    state_dir: Path | None,
    **options: Any,
) -> None:
    """A Debian system with systemd. Needs root and mmdebstrap."""
    from pxed.client import debian

    version = version or time.strftime("%Y.%m.%d")
    target = _new_image(name, version, _state_dir(state_dir, config_path))
    own = script.read_bytes() if script else b""
    debian.build_debian(
        target, name=name, version=version, script=own, progress=_progress, **options
    )
    click.echo(f"image {name}@{version} is ready in {target}")


def _new_image(name: str, version: str, state_dir: Path) -> Path:
    target = configuration.Config(interface="", state_dir=state_dir).images_dir / name / version
    if target.exists():
        raise UsageError(f"{target} exists already: choose another --version")
    return target


def _progress(text: str) -> None:
    click.echo(f"  {text}", err=True)


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
