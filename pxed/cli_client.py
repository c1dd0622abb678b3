"""``pxed client``: machines, looked at and managed."""

import time
from pathlib import Path
from typing import Any

import click

from pxed.cli_base import json_option, server, show_json, where
from pxed.cli_group import Commands
from pxed.errors import UsageError
from pxed.mac import parse_mac
from pxed.narrative import who
from pxed.table import ago, fold, table

_many = click.argument("select", metavar="SEL...", nargs=-1, required=True)


@click.group(cls=Commands)
def client() -> None:
    """Machines: look at them, name them, say what they boot.

    SEL is a MAC address, a name, @GROUP, a pattern such as 'seat-*', or all.
    """


@client.command("list")
@click.argument("select", metavar="[SEL]...", nargs=-1)
@json_option
@where
def client_list(
    select: tuple[str, ...], as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """All clients that are known, or those that SEL means."""
    asked = server(state_dir, config_path)
    clients = asked.get("/v1/clients")
    if select:
        chosen = set(asked.post("/v1/clients/select", {"select": list(select)})["macs"])
        clients = [each for each in clients if each["mac"] in chosen]
    if as_json:
        show_json(clients)
        return
    if not clients:
        click.echo("no client was seen yet")
        return
    now = time.time()
    rows = [
        [c["mac"], c["name"], " ".join(c["groups"]), _state(c), _stage(c), c["firmware"],
         c["ip"], c["image"], _heard(c, now), c["why"] or _disk(c) or c["note"]]
        for c in clients
    ]  # fmt: skip
    heads = ["MAC", "NAME", "GROUPS", "STATE", "STAGE", "FIRMWARE", "IP", "IMAGE", "HEARD", "WHY"]
    click.echo(table(heads, rows, spare=["FIRMWARE", "GROUPS", "IP", "IMAGE", "STAGE"]))


def _stage(shown: dict[str, Any]) -> str:
    """How far a boot has come, where its state does not say that already."""
    return "" if shown["state"] == "running" else shown["stage"] or ""


def _state(shown: dict[str, Any]) -> str:
    words = [shown["state"]]
    if shown["degraded"]:
        words.append("degraded")
    if shown["admission"] == "blocked" or shown["waiting"]:
        words.append("blocked" if shown["admission"] == "blocked" else "WAITS")
    if shown["mode"] == "provision":
        words.append("provision")
    if shown["once"] or shown["order"]:
        words.append(f"next:{shown['once'] or shown['order']}")
    if shown["fresh"]:
        words.append("reset")
    return " ".join(words)


def _disk(shown: dict[str, Any]) -> str:
    """What became of its own disk, while that is what it is about."""
    return str(shown["result"]) if shown["mode"] in ("provision", "local") else ""


def _heard(shown: dict[str, Any], now: float) -> str:
    return f"{ago(now - shown['last_seen'])} ago" if shown["last_seen"] else "never"


@client.command("show")
@click.argument("select", metavar="SEL")
@json_option
@where
def client_show(
    select: str, as_json: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """One client and the timeline of its current or last boot."""
    asked = server(state_dir, config_path)
    try:
        mac: str = parse_mac(select)
    except ValueError as error:
        found = asked.post("/v1/clients/select", {"select": [select]})["macs"]
        if len(found) != 1:
            raise UsageError(f"{select!r} means {len(found)} clients: name one") from error
        mac = found[0]
    got = asked.get(f"/v1/clients/{mac}")
    if as_json:
        show_json(got)
        return
    machine = who(got["firmware"], got["arch"])
    words = [got["mac"], got["name"], _state(got), got["image"], machine, got["ip"]]
    click.echo("\n".join(fold("  ".join(word for word in words if word))))
    for label, text in (
        ("also", ", ".join(got["macs"])), ("groups", ", ".join(got["groups"])),
        ("note", got["note"]), *_why(got["why"]), ("disk", got["result"]),
        *(("hint", text) for text in got["hints"]),
    ):  # fmt: skip
        if text:
            click.echo(f"{label:8}{text}")
    if got["state"] == "failed" and got.get("seen"):
        rows = [
            [f"{s['seconds']:8.3f} s", s["text"] + (f" ({s['count']} times)" * (s["count"] > 1))]
            for s in got["seen"]
        ]
        click.echo(table(["AFTER", "SEEN"], rows))
    elif got["timeline"]:
        rows = [[f"{s['seconds']:8.3f} s", s["stage"], s["detail"]] for s in got["timeline"]]
        click.echo(table(["AFTER", "STAGE", ""], rows))


def _why(text: str) -> list[tuple[str, str]]:
    """The cause and what to do about it, each with its label."""
    cause, _, todo = text.partition("; ")
    return [("why", cause), ("do", todo)]


@client.command("name")
@click.argument("select", metavar="SEL")
@click.argument("name", default="")
@where
def client_name(select: str, name: str, config_path: Path | None, state_dir: Path | None) -> None:
    """Call one client NAME; without NAME take its name away."""
    _do(server(state_dir, config_path).post("/v1/clients/name", {"client": select, "name": name}))


@client.command("note")
@_many
@click.option("-m", "--text", default="", help="What to note; empty: nothing.")
@where
def client_note(
    select: tuple[str, ...], text: str, config_path: Path | None, state_dir: Path | None
) -> None:
    """Note something about clients."""
    body = {"select": list(select), "note": text}
    _do(server(state_dir, config_path).post("/v1/clients/note", body))


@client.command("group")
@_many
@click.option("-a", "--add", multiple=True, help="Group to put them into; repeatable.")
@click.option("-r", "--remove", multiple=True, help="Group to take them out of; repeatable.")
@where
def client_group(
    select: tuple[str, ...],
    add: tuple[str, ...],
    remove: tuple[str, ...],
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """Put clients into groups, and take them out."""
    body = {"select": list(select), "add": list(add), "remove": list(remove)}
    _do(server(state_dir, config_path).post("/v1/clients/group", body))


@client.command("approve")
@_many
@where
def client_approve(
    select: tuple[str, ...], config_path: Path | None, state_dir: Path | None
) -> None:
    """Let clients boot, where [clients] admit = "approve", and those that were blocked."""
    _do(server(state_dir, config_path).post("/v1/clients/approve", {"select": list(select)}))


@client.command("block")
@_many
@click.option("--now", is_flag=True, help="Take their disks away at once, even if they run.")
@where
def client_block(
    select: tuple[str, ...], now: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Let clients boot no more."""
    body = {"select": list(select), "now": now}
    _do(server(state_dir, config_path).post("/v1/clients/block", body))


@client.command("reset")
@_many
@click.option("--undo", is_flag=True, help="Take it back, before the next boot.")
@where
def client_reset(
    select: tuple[str, ...], undo: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Give clients a new /config at their next boot.

    The present one is kept until the reset after: pxed midlayer restore SEL --old.
    """
    body = {"select": list(select), "undo": undo}
    _do(server(state_dir, config_path).post("/v1/clients/reset", body))


@client.command("boot")
@click.argument("words", metavar="SEL... ORDER", nargs=-1, required=True)
@click.option("--once", is_flag=True, help="At the next boot only.")
@where
def client_boot(
    words: tuple[str, ...], once: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Say what clients boot.

    ORDER is diskless, provision, local (their own disk), image=NAME[@VERSION or @CHANNEL], or
    default (what their class boots).
    """
    if len(words) < 2:
        raise UsageError("name the clients and then what they boot: pxed client boot SEL... ORDER")
    body = {"select": list(words[:-1]), "order": words[-1], "once": once}
    _do(server(state_dir, config_path).post("/v1/clients/boot", body))


@client.command("forget")
@_many
@click.option("--force", is_flag=True, help="Even those that seem to run.")
@where
def client_forget(
    select: tuple[str, ...], force: bool, config_path: Path | None, state_dir: Path | None
) -> None:
    """Forget clients that are off; their midlayers stay until pxed midlayer gc."""
    body = {"select": list(select), "force": force}
    _do(server(state_dir, config_path).post("/v1/clients/forget", body))


@client.command("join")
@click.argument("select", metavar="SEL")
@click.argument("macs", metavar="MAC...", nargs=-1, required=True)
@click.option("--part", is_flag=True, help="They are no longer its addresses.")
@where
def client_join(
    select: str,
    macs: tuple[str, ...],
    part: bool,
    config_path: Path | None,
    state_dir: Path | None,
) -> None:
    """A machine with several network cards: make MAC... further addresses of SEL."""
    body = {"client": select, "macs": list(macs), "part": part}
    _do(server(state_dir, config_path).post("/v1/clients/join", body))


@client.command("wake")
@_many
@where
def client_wake(select: tuple[str, ...], config_path: Path | None, state_dir: Path | None) -> None:
    """Switch clients on: wake-on-LAN, on the interface that is served."""
    _do(server(state_dir, config_path).post("/v1/clients/wake", {"select": list(select)}))


def _do(answer: dict[str, Any]) -> None:
    for each in answer["done"]:
        click.echo(f"{each['name'] or each['mac']} {each['text']}")
