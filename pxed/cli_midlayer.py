"""``pxed midlayer``: the private file systems of the clients, cared for."""

import time
from pathlib import Path

import click

from pxed.cli_base import json_option, server, show_json, where
from pxed.cli_group import Commands
from pxed.describe import absolute
from pxed.table import ago, amount, table


@click.group(cls=Commands)
def midlayer() -> None:
    """Midlayers: each client's own /config.

    SEL is a client's MAC address or name.
    """


@midlayer.command("list")
@json_option
@where
def midlayer_list(as_json: bool, config_path: Path | None, state_dir: Path | None) -> None:
    """All midlayers, what they take, and in which state they are."""
    found = server(state_dir, config_path).get("/v1/midlayers")
    if as_json:
        show_json(found)
        return
    now = time.time()
    rows = [
        [m["mac"], m["name"], amount(m["size"]), amount(m["used"]), m["state"],
         "kept" if m["old"] else "", "at next boot" if m["reset"] else "",
         f"{ago(now - m['last_seen'])} ago"]
        for m in found["midlayers"]
    ]  # fmt: skip
    heads = ["MAC", "NAME", "SIZE", "USED", "STATE", "OLD ONE", "RESET", "SEEN"]
    if rows:
        click.echo(table(heads, rows, spare=["SIZE", "OLD ONE"]))
    free, keep = amount(found["free"]), amount(found["keep_free"])
    count = f"{len(rows)} midlayer{'s' * (len(rows) != 1)}"
    click.echo(f"{count}; {free} free on their disk, new ones are made down to {keep}")


@midlayer.command("backup")
@click.argument("select", metavar="SEL")
@click.argument("file")
@where
def midlayer_backup(
    select: str, file: str, config_path: Path | None, state_dir: Path | None
) -> None:
    """Copy the midlayer of a client that is off to the new FILE (sparse)."""
    body = {"client": select, "file": absolute(file)}
    answer = server(state_dir, config_path, timeout=None).post("/v1/midlayers/backup", body)
    click.echo(f"{answer['text']} ({amount(answer['bytes'])})")


@midlayer.command("restore")
@click.argument("select", metavar="SEL")
@click.argument("file", required=False)
@click.option("--old", is_flag=True, help="The one from before the last reset or restore.")
@where
def midlayer_restore(
    select: str, file: str | None, old: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Put back a backup, or with --old what a reset put aside; the present one is kept as old."""
    body = {"client": select, "file": absolute(file) if file else "", "old": old}
    answer = server(state_dir, config_path, timeout=None).post("/v1/midlayers/restore", body)
    click.echo(answer["text"])


@midlayer.command("resize")
@click.argument("select", metavar="SEL")
@click.argument("size")
@where
def midlayer_resize(
    select: str, size: str, config_path: Path | None, state_dir: Path | None
) -> None:
    """Give the midlayer of a client that is off another SIZE, such as 2G."""
    body = {"client": select, "size": size}
    answer = server(state_dir, config_path, timeout=None).post("/v1/midlayers/resize", body)
    click.echo(answer["text"])


@midlayer.command("gc")
@click.option("--days", default=90, show_default=True, help="Unseen for this long.")
@click.option("--old", is_flag=True, help="Only what resets and restores put aside.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@where
def midlayer_gc(
    days: int, old: bool, yes: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Delete midlayers of machines that were not seen for a long time, for good."""
    asked = server(state_dir, config_path, timeout=None)
    if old:
        found = [m for m in asked.get("/v1/midlayers")["midlayers"] if m["old"]]
    else:
        found = asked.get(f"/v1/midlayers/unused?days={days}")["midlayers"]
    if not found:
        click.echo("there is nothing to delete")
        return
    now = time.time()
    for each in found:
        seen = f"seen {ago(now - each['last_seen'])} ago"
        click.echo(f"{each['mac']}  {each['name'] or '-':16}  {amount(each['used']):>9}  {seen}")
    what = "what was put aside of" if old else "the midlayers of"
    if not yes and not click.confirm(f"delete {what} these {len(found)} for good?"):
        click.echo("nothing was deleted")
        return
    body = {"macs": [each["mac"] for each in found], "old": old}
    answer = asked.post("/v1/midlayers/remove", body)
    click.echo(f"{answer['removed']} deleted, {amount(answer['freed'])} freed")
