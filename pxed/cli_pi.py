"""``pxed image build raspios-like``: an image for Raspberry Pis out of a root that somebody has."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import click

from pxed.cli_base import where

NewImage = Callable[[str, str, Path | None, Path | None], AbstractContextManager[Path]]
"""Name, version, state directory, configuration file: where the block builds an image."""


def raspios_like(new_image: NewImage) -> click.Command:
    """The command; ``new_image`` keeps what it makes in the library."""

    @click.command("raspios-like")
    @click.argument("source", type=click.Path(path_type=Path, exists=True))
    @click.option("--boot", type=click.Path(path_type=Path, exists=True, file_okay=False),
                  help="Its boot directory.  [default: /boot/firmware or /boot in SOURCE]",
                  )  # fmt: skip
    @click.option("--shelf", type=click.IntRange(0, 65534), default=17, show_default=True,
                  help="AoE shelf of [class.rpi].")  # fmt: skip
    @click.option("--cmdline", default="", help="Added to the kernel command line.")
    @click.option("--compression", default="auto", show_default=True,
                  type=click.Choice(["auto", "zstd", "xz", "lz4", "gzip"]),
                  help="Of the root; auto: the best that its kernel can read.")  # fmt: skip
    @click.option("--uefi", is_flag=True, help="Also for ARM machines whose firmware is UEFI.")
    @click.option("--name", default="pi", show_default=True, help="Name of the image.")
    @click.option("--version", help="Its version.  [default: today's, YYYY.MM.DD]")
    @where
    def build(
        source: Path,
        boot: Path | None,
        shelf: int,
        cmdline: str,
        compression: str,
        uefi: bool,
        name: str,
        version: str | None,
        config_path: Path | None,
        state_dir: Path | None,
    ) -> None:
        """Raspberry Pis: from SOURCE, the 64-bit root of Raspberry Pi OS or its like.

        SOURCE is a directory or a tar archive, with the boot partition's files in /boot/firmware or
        /boot. Needs root. Nothing in it is run, and nothing of it is changed.
        """
        from pxed.client import raspios

        version = version or time.strftime("%Y.%m.%d")
        terminal = sys.stderr.isatty()

        def said(text: str) -> None:
            if not text.endswith("%"):
                click.echo(f"\r  {text}" if terminal else f"  {text}", err=True)
            elif terminal:
                click.echo(f"\r  {text:>5}", err=True, nl=False)

        with new_image(name, version, state_dir, config_path) as target:
            lacks = raspios.build_raspios(
                target, source, name=name, version=version, boot=boot, shelf=shelf,
                cmdline=cmdline, compression=compression, uefi=uefi, progress=said,
            )  # fmt: skip
        for lack in lacks:
            click.echo(f"pxed: it lacks something: {lack}: {lack.todo}", err=True)

    return build
