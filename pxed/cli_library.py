"""What the commands share that make images: the library on the disk, steps and their progress."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from pxed import config as configuration
from pxed import images
from pxed.cli_base import load_config, state_directory
from pxed.errors import PxedError
from pxed.library import Library


def library_in(state_dir: Path | None, config_path: Path | None) -> Library:
    """The library of this state directory; what root makes there is the server's afterwards."""
    state = state_directory(state_dir, config_path)
    library = Library(configuration.Config(interface="", state_dir=state).images_dir)
    # The server may have a user of its own, and this be root.
    click.get_current_context().call_on_close(lambda: _hand_over(library.directory))
    return library


def _hand_over(directory: Path) -> None:
    if os.geteuid() == 0 and directory.is_dir():
        from aoe_fast.privileges import give_like  # compiled: only where it is needed

        give_like(directory, directory.parent)


def say_if_unchosen(library: Library, config_path: Path | None, class_name: str) -> None:
    """A second image, and the configuration does not say which: no server would start with both."""
    try:
        each = load_config(config_path, interface="any").classes.get(class_name)
        if each is not None:
            images.find(library.directory, each.image, class_name)
    except PxedError as error:
        click.echo(f"before pxed serve starts again: {error}", err=True)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Steps as lines; the share of one ("12 %"), on a terminal only, in place."""
    terminal = sys.stderr.isatty()
    clear = "\r\x1b[K" if terminal else ""

    def progress(text: str) -> None:
        if not text.endswith("%"):
            click.echo(f"{clear}  {text}", err=True)
        elif terminal:
            click.echo(f"\r  {text:>5}", err=True, nl=False)

    try:
        yield progress
    finally:
        click.echo(clear, err=True, nl=False)


def free_version(library: Library, name: str) -> str:
    """Today's date, and a number behind it where there is one from today already."""
    today = time.strftime("%Y.%m.%d")
    have = images.versions(library.directory, name)
    return next(v for v in (today, *(f"{today}.{n}" for n in range(2, 1000))) if v not in have)
