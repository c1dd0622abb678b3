"""What every command of ``pxed`` shares: options, errors, where the server and its state are."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import click

from pxed import config as configuration
from pxed.ask import ControlClient
from pxed.errors import PxedError, UsageError
from pxed.interrupt import heard

P = ParamSpec("P")

DEFAULT_CONFIG = Path("/etc/pxed/pxed.toml")
DEFAULT_STATE = configuration.Config(interface="").state_dir


def said(command: Callable[P, None]) -> Callable[P, None]:
    """Turns the errors that pxed raises on purpose into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            heard()
            command(*args, **kwargs)
        except PxedError as error:
            click.echo(f"pxed: {error}", err=True)
            sys.exit(error.exit_status)
        except PermissionError as error:
            if error.filename is None:
                raise
            click.echo(f"pxed: {error.filename}: no permission: run as root", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("pxed: interrupted", err=True)
            sys.exit(130)

    return run


# Not looked at by click: whoever reads it says what is wrong and what to do.
_path = click.Path(path_type=Path, readable=False)

state_option = click.option(
    "--state-dir",
    type=_path,
    help=f"State directory of the running server.  [default: from -c, else {DEFAULT_STATE}]",
)
config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=_path,
    help=f"Configuration file.  [default: {DEFAULT_CONFIG} if it exists]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def where(command: Callable[P, None]) -> Callable[P, None]:
    """The options that find the server, and its errors in one line."""
    return config_option(state_option(said(command)))


def show_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))


def load_config(config_path: Path | None, interface: str | None = None) -> configuration.Config:
    if config_path is None and _default_is_there():
        config_path = DEFAULT_CONFIG
    if config_path is not None:
        return configuration.load(config_path, interface=interface)
    if interface is None:
        raise UsageError(_which_interface())
    return configuration.parse("", "command line", interface=interface)


def _default_is_there() -> bool:
    try:
        return DEFAULT_CONFIG.exists()
    except PermissionError:  # its directory is not ours: reading it will say so
        return True


def _which_interface() -> str:
    from pxed.net.link import names

    there = ", ".join(sorted(names())) or "none"
    return (
        f'which interface? give it with -i, or as interface = "NAME" in {DEFAULT_CONFIG} '
        f"(Ethernet interfaces here: {there})"
    )


def state_directory(state_dir: Path | None, config_path: Path | None = None) -> Path:
    if state_dir is not None:
        return state_dir
    if config_path is not None or _default_is_there():
        return load_config(config_path, interface="any").state_dir
    return DEFAULT_STATE


def server(
    state_dir: Path | None, config_path: Path | None = None, *, timeout: float | None = 30.0
) -> ControlClient:
    """The control socket of the running server; ``timeout`` None: what is asked may take long."""
    state = state_directory(state_dir, config_path)
    return ControlClient(
        configuration.Config(interface="", state_dir=state).control_socket, timeout=timeout
    )
