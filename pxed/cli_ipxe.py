"""``pxed ipxe``: the programs that seats load first."""

from pathlib import Path

import click

from pxed import config as configuration
from pxed import ipxe as programs
from pxed.cli_base import (
    DEFAULT_CONFIG,
    json_option,
    load_config,
    show_json,
    state_directory,
    where,
)
from pxed.cli_group import Commands


@click.group(cls=Commands)
def ipxe() -> None:
    """iPXE: what PCs load before anything else."""


@ipxe.command("fetch")
@click.option("--release", default="trixie", show_default=True, help="Debian's code name.")
@click.option("--mirror", help="Debian mirror, such as one day's snapshot.  [default: Debian's]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Where to put it.  [default: ipxe in the state directory]")  # fmt: skip
@json_option
@where
def ipxe_fetch(
    release: str,
    mirror: str | None,
    out: Path | None,
    as_json: bool,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """Fetch the iPXE of a newer Debian, for the server to hand out.

    On UEFI that of trixie boots at once where that of bookworm waits two seconds for a key (on
    machines with RDRAND: see docs/operators.md), and it has a program for arm64. The package is
    checked against Debian's keys; nothing is installed on this machine.
    """
    from aoe_fast.privileges import give_like
    from pxed.client.ipxe import fetch_ipxe

    state = state_directory(state_dir, config_path)
    target = out.absolute() if out is not None else programs.own_directory(state)
    said = fetch_ipxe(
        target, release=release, mirror=mirror,
        progress=lambda text: click.echo(f"  {text}", err=True),
    )  # fmt: skip
    if out is None:
        give_like(target, target.parent)
    if as_json:
        show_json({"directory": str(target), **said})
        return
    click.echo(f"iPXE {said['version']} is in {target}")
    if said["waits_for_key"]:
        click.echo("it waits two seconds for a key, as that of bookworm does")
    served = _root(config_path)
    if served is None and out is None:
        click.echo("pxed serve takes it from its next start on")
    elif served != target:
        click.echo(f'to have it served, write root = "{target}" below [tftp] in the configuration')


def _root(config_path: Path | None) -> Path | None:
    """[tftp] root, where there is a configuration and it says so."""
    if config_path is None and not DEFAULT_CONFIG.exists():
        return configuration.Config(interface="").tftp.root
    return load_config(config_path, interface="any").tftp.root
