"""``pxed promote``: this machine's own installed system becomes the image, and is served (M1)."""

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pxed import config as configuration
from pxed import disk, images
from pxed.ask import NoServer
from pxed.cli_base import (
    config_option,
    load_config,
    said,
    server,
    show_json,
    state_directory,
)
from pxed.cli_library import free_version, steps
from pxed.errors import HostError, PxedError, UsageError
from pxed.images import STABLE
from pxed.library import Library
from pxed.offline import uses_without_server
from pxed.table import amount

RECORD = "promoted.json"  # in the state directory: what --undo undoes


@click.command()
@click.option("--root", "source", default="/", show_default=True, type=click.Path(path_type=Path),
              help="A root: a directory, or a block device such as a snapshot.")  # fmt: skip
@click.option("--copy", is_flag=True, help="Copy a block device; else it is served in place.")
@click.option("--exclude", multiple=True, metavar="PATH", help="Seats do not get it; repeatable.")
@click.option("--name", default="", help="Of the image.  [default: the class's, else system]")
@click.option("--version", default="", help="Of the image.  [default: today's, YYYY.MM.DD]")
@click.option("--kernel", default="", help="Kernel release.  [default: the running one]")
@click.option("--cmdline", default="", help="Added to the kernel command line.")
@click.option("--compression", type=click.Choice(["zstd", "lz4"]), default="zstd",
              show_default=True)  # fmt: skip
@click.option("-i", "--interface", help="Network interface to serve; wins over the file's.")
@click.option("--no-serve", is_flag=True, help="Only make the image, and let seats boot it.")
@click.option("--dry-run", is_flag=True, help="Only check, and say what would be done.")
@click.option("--undo", is_flag=True, help="Go back to what seats booted before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; does not serve.")
@config_option
@click.option("--state-dir", type=click.Path(path_type=Path, readable=False),
              help="Wins over the file's.")  # fmt: skip
@said
def promote(
    config_path: Path | None,
    state_dir: Path | None,
    interface: str | None,
    undo: bool,
    no_serve: bool,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Make this machine's installed system the image that seats boot, and serve it.

    A system that runs is copied, compressed, without what belongs to this machine: addresses,
    keys, logs, its list of disks. A block device that nobody has mounted is served where it is.
    Nothing of the machine itself is changed.
    """
    state = state_directory(state_dir, config_path)
    library = Library(configuration.Config(interface="", state_dir=state).images_dir)
    if undo:
        got = _undo(library, state, config_path)
        show_json(got) if as_json else click.echo(got["text"])
        return
    config = _config(config_path, interface)
    if "x86" not in config.classes:
        raise UsageError("[class.x86] is not in the configuration: PCs are of this class")
    made = _promote(library, state, config, dry_run=dry_run, **options)
    if as_json:
        show_json(made)
        return
    if dry_run:
        click.echo("nothing was done (--dry-run)")
        return
    click.echo(f"{made['image']} is what booting seats get; undone with: pxed promote --undo")
    if _running(state):
        return
    if no_serve or not config.interface:
        click.echo("serve it: pxed serve -i INTERFACE")
        return
    words = ["-i", interface] if interface else []
    words += ["-c", str(config_path)] if config_path else []
    words += ["--state-dir", str(state_dir)] if state_dir else []
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pxed", "serve", *words])  # noqa: S606


def _config(config_path: Path | None, interface: str | None) -> configuration.Config:
    """The configuration; without an interface it is good enough to make an image."""
    try:
        return load_config(config_path, interface)
    except UsageError:
        if interface:
            raise
        return replace(load_config(config_path, "any"), interface="")  # any other error comes again


def _running(state: Path) -> bool:
    with contextlib.suppress(NoServer):
        server(state).get("/v1/status")
        return True
    return False


def _name_and_channel(library: Library, said: str, wanted: str | None) -> tuple[str, str]:
    """What the image is to be called so that the class boots it, and which pointer moves."""
    name, at, channel = (wanted or "").partition("@")
    if at and channel not in images.channels(library.directory, name):
        raise UsageError(
            f'[class.x86] image = "{wanted}" names one version: write "{name}", so that seats can '
            "get another one"
        )
    there = images.names(library.directory)
    if said and name and said != name:
        raise UsageError(f'[class.x86] image = "{wanted}": seats would not boot {said}')
    if said and not name and there not in ([], [said]):
        raise UsageError(
            f"there is {there[0]} already, so nothing says that seats boot {said}: set image = "
            f'"{said}" under [class.x86]'
        )
    if not said and not name and len(there) > 1:
        raise UsageError(f"which of {', '.join(there)} do seats boot? Set [class.x86] image")
    return said or name or next(iter(there), "system"), channel or STABLE


def _promote(
    library: Library, state: Path, config: configuration.Config, *, dry_run: bool, source: Path,
    copy: bool, exclude: tuple[str, ...], name: str, version: str, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    from pxed.client import promote as promoting

    each = config.classes["x86"]
    name, channel = _name_and_channel(library, name, each.image)
    images.word(name, "name for an image")
    version = images.word(version or free_version(library, name), "version")
    target = library.directory / name / version
    if target.exists():
        raise UsageError(f"{name}@{version} is there already: choose another --version")
    origin = promoting.look(source, copy=copy or None, without=(str(state), *exclude))
    for line in _plan(origin, f"{name}@{version}", state, exclude):
        click.echo(line, err=True)
    made = {"image": f"{name}@{version}", "channel": channel, "source": str(origin.source),
            "copy": origin.copy, "mounts": list(origin.mounts)}  # fmt: skip
    if dry_run:
        return made
    have = images.versions(library.directory, name)
    before = str(library.find(name if channel == STABLE else f"{name}@{channel}")) if have else ""
    with steps() as progress:
        promoting.promote(
            target, origin, name=name, version=version, shelf=each.shelf, state_dir=state,
            exclude=exclude, progress=progress, **options,
        )  # fmt: skip
        progress("recording the digests")
        built = library.seal(library.find(f"{name}@{version}"))
    _use(library, state, str(built), channel)
    disk.write_whole(state / RECORD, json.dumps(made | {"before": before}) + "\n")
    owner = state.stat()
    disk.give(state / RECORD, owner.st_uid, owner.st_gid)
    return made | {"before": before}


def _plan(origin: Any, image: str, state: Path, exclude: tuple[str, ...]) -> list[str]:
    """What will be done, for people."""
    from pxed.client.promote import LEFT_OUT

    if not origin.copy:
        return [
            f"{image} is made of {origin.source}, served read-only where it is",
            "  seats can read all that is on it, keys and passwords too (--copy leaves keys out)",
        ]
    lines = [
        f"{image} is made of {', '.join([str(origin.source), *origin.mounts])}"
        + (f" ({amount(origin.used)} used)" if origin.used else ""),
        f"  left out: {', '.join([str(state), *LEFT_OUT, *exclude])}",
        "  and swap, logs, this machine's addresses, keys, name and list of disks",
    ]
    if origin.skipped:
        lines.append(f"  other disks, not part of the system: {', '.join(origin.skipped)}")
    lines.append("  seats get its accounts, passwords and homes: --exclude PATH leaves more out")
    return lines


def _use(library: Library, state: Path, spec: str, channel: str) -> None:
    try:
        server(state).post("/v1/images/use", {"image": spec, "channel": channel})
    except NoServer:
        library.use(spec, channel)


def _undo(library: Library, state: Path, config_path: Path | None) -> dict[str, Any]:
    """Point the channel back, and remove the promoted version unless seats still need it."""
    try:
        record = json.loads((state / RECORD).read_text())
        image, channel, before = (str(record[key]) for key in ("image", "channel", "before"))
    except FileNotFoundError:
        raise UsageError(f"{state}: nothing was promoted here") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(
            f"{state / RECORD}: cannot be read ({error!r}): pxed image rollback NAME does the same"
        ) from None
    name, _, version = image.partition("@")
    there = images.versions(library.directory, name)
    points = images.channels(library.directory, name).get(channel, [""])[-1] == version
    if before.partition("@")[2] not in there:
        before = ""
    if points and before:
        _use(library, state, before, channel)
    elif points and _running(state):
        raise HostError(f"{image} is all that seats can boot: stop the server first, then again")
    text = f"booting seats get {before} again" if before else "seats have nothing to boot any more"
    if version in there:
        text += _remove(library, state, config_path, image, channel if not before else "")
    (state / RECORD).unlink(missing_ok=True)
    return {"image": image, "before": before, "text": text}


def _remove(
    library: Library, state: Path, config_path: Path | None, image: str, channel: str
) -> str:
    """Remove an image, and the ``channel`` that nothing else can be in; or say who needs it."""
    name, _, version = image.partition("@")
    try:
        try:
            server(state).ask("DELETE", f"/v1/images/{name}/{version}")
        except NoServer:
            found, uses = library.find(image), uses_without_server(state, config_path)
            if channel and not uses(found):
                library.drop_channel(name, channel, last=True)
            library.remove(found, uses)
    except PxedError as error:
        if channel:
            raise
        return f"; {image} stays until nobody needs it: {error}"
    return f"; {image} is removed"
