"""``pxed image import``: an image from a disk image, a root's directory or live media."""

import re
from pathlib import Path
from typing import Any

import click

from pxed import images
from pxed.ask import NoServer
from pxed.cli_base import json_option, load_config, server, show_json, where
from pxed.cli_library import free_version, library_in, say_if_unchosen, steps
from pxed.contents import today
from pxed.describe import describe, detail
from pxed.errors import PxedError, UsageError
from pxed.library import Library
from pxed.table import amount


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Of the image.  [default: from the file's name]")
@click.option("--version", default="", help="Of the image.  [default: today's, YYYY.MM.DD]")
@click.option("--released", default="", help="Date, YYYY-MM-DD.  [default: today]")
@click.option("--root-part", type=int, help="Number of the partition with the root.")
@click.option("--boot-part", type=int,
              help="Number of the partition with the kernel; 0: it is in the root.")  # fmt: skip
@click.option("--kernel", default="", help="Its release.  [default: the newest with AoE]")
@click.option("--cmdline", default="", help="Added to the kernel command line.")
@click.option("--format", "root_format", default="auto", show_default=True,
              type=click.Choice(["auto", "keep", "squashfs", "erofs"]),
              help="Of the root; auto: as it is where a seat can mount it so, else squashfs."
              )  # fmt: skip
@click.option("--compression", type=click.Choice(["zstd", "lz4"]), default="zstd",
              show_default=True, help="Of a squashfs.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PATH", help="Seats do not get it; repeatable.")
@click.option("--initramfs", default="auto", show_default=True,
              type=click.Choice(["auto", "ours", "its"]),
              help="Of a live system; auto: its own and what it lacks.")  # fmt: skip
@click.option("--maintenance/--no-maintenance", default=True, show_default=True,
              help="With a maintenance disk, from which it is installed on local disks.",
              )  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only look, and say what would be done.")
@json_option
@where
def image_import(
    source: Path,
    name: str,
    version: str,
    released: str,
    dry_run: bool,
    as_json: bool,
    config_path: Path | None,
    state_dir: Path | None,
    **options: Any,
) -> None:
    """Make an image of SOURCE: a disk image, a root's directory, or a live system.

    A disk image is raw, qcow2, VMDK, VDI, VHDX or VHD, or a block device, with GPT, MBR or no
    table; a live system an ISO image or a directory with its files. Needs root. Nothing of it runs
    here, and nothing is changed in it.
    """
    from pxed.client import importing
    from pxed.client.debian import new_log
    from pxed.client.wish import Wish

    library = library_in(state_dir, config_path)
    name = images.word(name or _name_from(source), "name for an image")
    version = images.word(version or free_version(library, name), "version")
    if released and not re.fullmatch(r"\d{4}-\d\d-\d\d", released, re.ASCII):
        raise UsageError(f"--released {released!r}: must be a date such as 2026-11-23")
    wish = Wish(
        name, version, released or today(), load_config(config_path, "any").classes["x86"].shelf,
        **options,
    )  # fmt: skip
    importing.check_host(source)
    wish.check()
    if dry_run:
        found = _look(library, source, wish)
        show_json(found) if as_json else click.echo("nothing was done (--dry-run)")
        return
    first = not images.versions(library.directory, name)
    with steps() as progress:
        log = new_log("import", f"{name}@{version}")
        progress(f"the log is {log}")
        made = importing.import_image(library, source, wish, log, progress)
    if first:
        _tell(state_dir, config_path, str(made))
    shown = describe(library, made) | detail(made)
    if as_json:
        show_json(shown)
        return
    channels = " ".join(shown["channels"])
    click.echo(f"image {made} is ready" + (f" and is {name}@{channels}" if channels else ""))
    if shown["diskless_only"]:
        click.echo(f"it is for diskless seats only: {shown['diskless_only']}")
    else:
        less = " (--format squashfs takes less)" if "root.img" in shown["files"] else ""
        needs = f"about {amount(shown['disk_bytes'])} or more"
        click.echo(f"it can be installed on disks of {needs}{less}")
    if not channels:
        click.echo(f"let clients boot it: pxed image use {made}")
    say_if_unchosen(library, config_path, made.class_name)


def _look(library: Library, source: Path, wish: Any) -> dict[str, Any]:
    """What an import would find; said on standard error too."""
    from pxed.client import importing

    with (
        steps() as progress,
        library.scratch(wish.name) as work,
        importing.found_in(source, wish, work, progress) as found,
    ):
        for line in found.lines:
            progress(line)
        return {
            "image": f"{wish.name}@{wish.version}",
            "origin": found.origin,
            "system": found.title,
            "kernel": found.release,
        }


def _name_from(source: Path) -> str:
    """A name for the image: the file's, as far as it can be one."""
    name = source.resolve().name
    while (stem := re.sub(r"\.(qcow2|raw|img|vmdk|vdi|vhdx?|iso|disk)$", "", name)) != name:
        name = stem
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:64] or "imported"


def _tell(state_dir: Path | None, config_path: Path | None, image: str) -> None:
    """A server that runs has to know of a first version, which nobody has to choose."""
    try:
        server(state_dir, config_path).post("/v1/images/use", {"image": image})
    except NoServer:
        pass
    except PxedError as error:
        click.echo(f"pxed: {error}", err=True)
