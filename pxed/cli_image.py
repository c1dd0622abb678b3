"""``pxed image``: through the running server, or without one directly in the state directory."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pxed import config as configuration
from pxed.ask import NoServer
from pxed.cli_base import json_option, server, show_json, where
from pxed.cli_group import Commands
from pxed.cli_import import image_import
from pxed.cli_library import library_in, say_if_unchosen
from pxed.cli_pi import raspios_like
from pxed.describe import absolute, describe, detail, finding_line, source_of
from pxed.errors import HostError, UsageError
from pxed.images import STABLE, Image
from pxed.offline import uses_without_server
from pxed.table import amount, table


@click.group(cls=Commands)
def image() -> None:
    """Images: versions of what clients boot."""


image.add_command(image_import)


@image.command("list")
@json_option
@where
def image_list(as_json: bool, config_path: Path | None, state_dir: Path | None) -> None:
    """All images, their channels, and who needs them."""
    try:
        found = server(state_dir, config_path).get("/v1/images")
    except NoServer:
        library = library_in(state_dir, config_path)
        good, bad = library.all()
        found = {"images": [describe(library, each) for each in good], "damaged": bad}
    if as_json:
        show_json(found)
        return
    for text in found["damaged"]:
        click.echo(f"damaged: {text}", err=True)
    if not found["images"]:
        click.echo("there is no image: pxed image build minimal, or pxed image add")
        return
    rows = [
        [f"{i['name']}@{i['version']}", i["class"], i["released"], " ".join(i["devices"]),
         amount(i["bytes"]) if i["bytes"] else "", " ".join(i["channels"]),
         re.split("[;:]", i["used"])[0]]
        for i in found["images"]
    ]  # fmt: skip
    heads = ["IMAGE", "CLASS", "RELEASED", "DEVICES", "SIZE", "CHANNELS", "NEEDED"]
    click.echo(table(heads, rows, spare=["RELEASED", "DEVICES", "CLASS"]))


@image.command("show")
@click.argument("spec", metavar="NAME[@VERSION]")
@json_option
@where
def image_show(spec: str, as_json: bool, config_path: Path | None, state_dir: Path | None) -> None:
    """One image: its devices, files and digests."""
    library = library_in(state_dir, config_path)
    found = library.find(spec)
    try:
        shown = server(state_dir, config_path).get(_where(found))
    except NoServer:
        shown = describe(library, found) | detail(found)
    if as_json:
        show_json(shown)
        return
    lines = [
        ("image", f"{shown['name']}@{shown['version']}"), ("class", shown["class"]),
        ("released", shown["released"]), ("channels", " ".join(shown["channels"])),
        ("needed", shown["used"]), *shown["devices"].items(),
        *(_origin(shown["origin"]) if shown["origin"] else ()),
        ("installs", f"no: {why}" if (why := shown["diskless_only"])
         else f"on disks of about {amount(shown['disk_bytes'])} or more"),
    ]  # fmt: skip
    click.echo(table(["", ""], [list(line) for line in lines if line[1]], header=False))
    for text in shown["lacks"]:
        click.echo(f"lacks: {text}")
    if shown["files"]:
        rows = [[n, amount(f["size"]), f["sha256"]] for n, f in shown["files"].items()]
        click.echo("\n" + table(["FILE", "SIZE", "SHA256"], rows, spare=["SIZE"]))


def _origin(said: dict[str, str]) -> list[tuple[str, str]]:
    """What an imported image was made of, in two lines; any key may be missing."""
    made = ", ".join(said[key] for key in ("source", "kind", "root") if key in said)
    system = ", kernel ".join(said[key] for key in ("system", "kernel") if key in said)
    return [("made of", made), ("system", system)]


@image.command("add")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--name", default="", help="Its name.  [default: the manifest's]")
@click.option("--version", default="", help="[default: the manifest's, else today's date]")
@click.option("--class", "class_name", default="", help="x86 or rpi.  [default: the manifest's]")
@click.option("--released", default="", help="Date, YYYY-MM-DD.  [default: today]")
@click.option("--boot", help="File or block device of the boot disk.")
@click.option("--root", help="File or block device of the root file system.")
@click.option("--tfm", help="File or block device of the maintenance system.")
@click.option("--copy", is_flag=True, help="Copy block devices; else they are served in place.")
@json_option
@where
def image_add(
    directory: Path | None,
    name: str,
    version: str,
    class_name: str,
    released: str,
    boot: str | None,
    root: str | None,
    tfm: str | None,
    copy: bool,
    as_json: bool,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """Add an image: a DIRECTORY with a manifest.json, or single devices.

    Block devices are served where they are unless --copy is given.
    """
    given = {"boot": boot, "root": root, "tfm": tfm}
    body = {
        "directory": absolute(str(directory)) if directory else "",
        "devices": {device: absolute(path) for device, path in given.items() if path},
        "name": name, "version": version, "class": class_name, "released": released, "copy": copy,
    }  # fmt: skip
    with _Progress() as progress:
        try:
            last = progress.last_of(server(state_dir, config_path).follow("/v1/images", body))
            added = last["image"]
            if last["warning"]:
                click.echo(f"clients get what they got before: {last['warning']}", err=True)
        except NoServer:
            library = library_in(state_dir, config_path)
            library.directory.mkdir(parents=True, exist_ok=True)
            added = describe(library, library.add(source_of(body), progress.report))
            say_if_unchosen(library, config_path, added["class"])
    if as_json:
        show_json(added)
        return
    which = f"{added['name']}@{added['version']}"
    channels = " ".join(added["channels"])
    click.echo(f"{which} is added" + (f" and is {added['name']}@{channels}" if channels else ""))
    if not channels:
        click.echo(f"let clients boot it: pxed image use {which}")


@image.command("verify")
@click.argument("spec", metavar="NAME[@VERSION]")
@json_option
@where
def image_verify(
    spec: str, as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Read a whole image and compare it with its digests."""
    library = library_in(state_dir, config_path)
    found = library.find(spec)
    with _Progress() as progress:
        try:
            asked = server(state_dir, config_path)
            lines = asked.follow(f"{_where(found)}/verify", {})
            findings = progress.last_of(lines)["findings"]
        except NoServer:
            findings = [finding_line(each) for each in library.verify(found, progress.report)]
    if as_json:
        show_json(findings)
    else:
        marks = {True: "ok", False: "BAD", None: "?"}
        for each in findings:
            click.echo(f"{marks[each['good']]:4} {each['file']}: {each['text']}")
    if any(each["good"] is False for each in findings):
        raise HostError(f"{found} is not what was added: add it again as another version")


@image.command("use")
@click.argument("spec", metavar="NAME@VERSION")
@click.option("--channel", default=STABLE, show_default=True, help="Which pointer to move.")
@json_option
@where
def image_use(
    spec: str, channel: str, as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Let booting clients get this version; running ones keep theirs until they boot again."""
    if "@" not in spec:
        raise UsageError(f"{spec!r}: name the version too: {spec}@VERSION")
    body = {"image": spec, "channel": channel}
    try:
        got = server(state_dir, config_path).post("/v1/images/use", body)
    except NoServer:
        chosen, before = library_in(state_dir, config_path).use(spec, channel)
        got = {"image": str(chosen), "before": before, "channel": channel}
    _say_switched(got, as_json)


@image.command("rollback")
@click.argument("name")
@click.option("--channel", default=STABLE, show_default=True, help="Which pointer to move.")
@json_option
@where
def image_rollback(
    name: str, channel: str, as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Go back to the version before."""
    body = {"name": name, "channel": channel}
    try:
        got = server(state_dir, config_path).post("/v1/images/rollback", body)
    except NoServer:
        chosen, before = library_in(state_dir, config_path).rollback(name, channel)
        got = {"image": str(chosen), "before": before, "channel": channel}
    _say_switched(got, as_json)


def _say_switched(got: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(got)
        return
    name = got["image"].partition("@")[0]
    was = f" (was {got['before']})" if got["before"] else ""
    click.echo(f"{name}@{got['channel']} is now {got['image']}{was}")
    if got.get("pinned"):
        click.echo(f"{got['pinned']} running clients keep their version until they boot again")
    for text in got.get("stuck", ()):
        click.echo(f"pxed: {text}", err=True)
    if got["channel"] == STABLE and got.get("classes") == []:
        click.echo("no class boots it by itself: see [class.x86] image in the configuration")


@image.command("drop-channel")
@click.argument("name")
@click.argument("channel")
@where
def image_drop_channel(
    name: str, channel: str, config_path: Path | None, state_dir: Path | None
) -> None:
    """Forget a channel of an image; its version stays."""
    body = {"name": name, "channel": channel}
    try:
        server(state_dir, config_path).post("/v1/images/drop-channel", body)
    except NoServer:
        library_in(state_dir, config_path).drop_channel(name, channel)
    click.echo(f"{name} has no channel {channel} any more")


@image.command("remove")
@click.argument("spec", metavar="NAME@VERSION")
@where
def image_remove(spec: str, config_path: Path | None, state_dir: Path | None) -> None:
    """Remove a version that nobody needs.

    Seats delete what they wrote with it at their next start ([midlayer] reclaim).
    """
    if "@" not in spec:
        raise UsageError(f"{spec!r}: name the version too: {spec}@VERSION")
    library = library_in(state_dir, config_path)
    found = library.find(spec)
    try:
        text = server(state_dir, config_path).ask("DELETE", _where(found))["text"]
    except NoServer:
        library.remove(found, uses_without_server(library.directory.parent, config_path))
        text = f"{found} is removed"
    click.echo(text)


@image.command("stick")
@click.argument("spec", metavar="NAME[@VERSION]")
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--unattended", is_flag=True, help="Ask nothing.")
@click.option("--wipe", is_flag=True, help="With --unattended: what another system left may go.")
@click.option("--disk", default="only", show_default=True,
              help="only, first, smallest, largest or a name such as nvme0n1.")  # fmt: skip
@click.option("--supported-until", default="", help="Date until which later versions upgrade it.")
@where
def image_stick(
    spec: str,
    target: Path,
    unattended: bool,
    wipe: bool,
    disk: str,
    supported_until: str,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """Write a disk image for a USB stick that installs an image without a server."""
    from pxed import provision
    from pxed.client import tfm

    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: must be a file; then write it to the stick with dd")
    if wipe and not unattended:
        raise UsageError("--wipe is for --unattended: the installer asks otherwise")
    found = library_in(state_dir, config_path).find(spec)
    found.check_installable()
    said = {"unattended": unattended, "wipe": wipe, "disk": disk}
    if supported_until:
        said["supported_until"] = supported_until
    policy = configuration.provision(said, "options")
    tfm.build_stick(found.directory, target, provision.orders(policy, found.released))
    click.echo(f"{target} is ready: sudo dd if={target} of=/dev/STICK bs=4M conv=fsync")


@image.group("build", cls=Commands)
def image_build() -> None:
    """Build an image from Debian's packages."""


_maintenance = click.option(
    "--maintenance/--no-maintenance", default=True, show_default=True,
    help="With a maintenance disk, from which it is installed on local disks.",
)  # fmt: skip


@image_build.command("minimal")
@click.option("--name", default="lab", show_default=True, help="Name of the image.")
@click.option("--version", help="Its version.  [default: today's, YYYY.MM.DD]")
@click.option("--kernel", default="linux-image-cloud-amd64", show_default=True,
              help="Kernel package; linux-image-amd64 has drivers for real machines.")  # fmt: skip
@_maintenance
@where
def image_build_minimal(
    name: str,
    version: str | None,
    kernel: str,
    maintenance: bool,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """A busybox system on Debian's cloud kernel: what the demo boots."""
    from pxed.client import minimal

    version = version or time.strftime("%Y.%m.%d")
    with _new_image(name, version, state_dir, config_path) as target:
        minimal.build_minimal(
            target, name=name, version=version, package=kernel, maintenance=maintenance,
            progress=_said,
        )  # fmt: skip


@image_build.command("debian")
@click.option("--release", default="bookworm", show_default=True, help="Debian's code name.")
@click.option("-p", "--package", "packages", multiple=True, help="One more package; repeatable.")
@click.option(
    "--script",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Program to run in the new root, as root, when the packages are there.",
)
@click.option("--user", default="", help="An account, with sudo; locked without --password-file.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the hash of its password, as mkpasswd prints it.",
)
@click.option("--locale", default="C.UTF-8", show_default=True)
@click.option("--keyboard", default="", metavar="LAYOUT[:VARIANT]",
              help="Layout, such as de or de:nodeadkeys.  [default: us]")  # fmt: skip
@click.option("--kernel", default="linux-image-amd64", show_default=True, help="Kernel package.")
@click.option("--mirror", help="Debian mirror, such as one day's snapshot.  [default: Debian's]")
@click.option("--cmdline", default="", help="Added to the kernel command line.")
@click.option("--compression", type=click.Choice(["zstd", "lz4"]), default="zstd",
              show_default=True)  # fmt: skip
@click.option("--initramfs", type=click.Choice(["initramfs-tools", "dracut"]),
              default="initramfs-tools", show_default=True)  # fmt: skip
@_maintenance
@click.option("--refresh", is_flag=True, help="Fetch today's packages again.")
@click.option("--name", default="debian", show_default=True, help="Name of the image.")
@click.option("--version", help="Its version.  [default: today's, YYYY.MM.DD]")
@where
def image_build_debian(
    name: str,
    version: str | None,
    script: Path | None,
    password_file: Path | None,
    config_path: Path | None,
    state_dir: Path | None,
    **options: Any,
) -> None:
    """A Debian system with systemd. Needs root and mmdebstrap."""
    from pxed.client import account, debian

    version = version or time.strftime("%Y.%m.%d")
    own = script.read_bytes() if script else b""
    password = account.read_hash(password_file, _warned) if password_file else ""
    with _new_image(name, version, state_dir, config_path) as target:
        debian.build_debian(
            target,
            name=name,
            version=version,
            script=own,
            password=password,
            progress=_said,
            **options,
        )


@contextlib.contextmanager
def _new_image(
    name: str, version: str, state_dir: Path | None, config_path: Path | None
) -> Iterator[Path]:
    """Where the block builds an image: sealed then, and used if it is the first of its name."""
    library = library_in(state_dir, config_path)
    target = library.directory / name / version
    if target.exists():
        raise UsageError(f"{target} exists already: choose another --version")
    first = library.keep_stable(name)
    yield target
    built = library.seal(library.find(f"{name}@{version}"))
    if first:
        library.use(str(built))
    click.echo(f"image {built} is ready in {target}")
    if library.channels_of(library.find(name)) and not library.channels_of(built):
        click.echo(f"let clients boot it: pxed image use {built}")
    say_if_unchosen(library, config_path, built.class_name)


def _warned(text: str) -> None:
    click.echo(f"pxed: {text}", err=True)


def _said(text: str) -> None:
    click.echo(f"  {text}", err=True)


image_build.add_command(raspios_like(_new_image))


def _where(found: Image) -> str:
    return f"/v1/images/{found.name}/{found.version}"


class _Progress:
    """One line on standard error that says how far it is, on a terminal only."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last = 0.0

    def report(self, what: str, done: int, total: int) -> None:
        if self._shown and time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            share = 100 * done // max(total, 1)
            click.echo(f"\r\x1b[K{share:3d} %  {what}", err=True, nl=False)

    def last_of(self, lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Show the progress in ``lines``; the last of them."""
        for line in lines:
            if "progress" not in line:
                return line
            self.report(line["progress"], line["done"], line["total"])
        raise HostError("the server ended before it was done")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._last:
            click.echo("\r\x1b[K", err=True, nl=False)
