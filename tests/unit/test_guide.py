"""The documents say what is: each command line, configuration key, default and link in them."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from aoe_fast.cli import cli
from pxed import config
from pxed.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / "tests/README.md",
         *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
PROGRAMS: dict[str, click.Command] = {"pxed": main, "aoe-fast": cli}

# In the guide's example these are not the defaults.
CHOSEN = {"dhcp.range", "dhcp.router", "dhcp.dns", "tftp.root", "control.group", "security.user",
          "class.x86.image"}  # fmt: skip


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of all that is shown as a command, from the program's name on."""
    shown = [
        line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").split("\n")
    ]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    shown += [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", outside)]
    for line in shown:
        found = re.match(r"(?:sudo )?(?:\.venv/bin/)?(pxed|aoe-fast) (.+)", line)
        if found:
            if found[2] == "...":
                continue
            try:
                yield [found[1], *shlex.split(found[2], comments=True)]
            except ValueError:
                yield line.split()


def wrong(words: list[str]) -> str:
    """What is no sub-command and no option of the program; empty if all is."""
    command, rest = PROGRAMS[words[0]], words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        several = rest[0].split("|")  # client list|show ...
        found = [command.get_command(click.Context(command), name) for name in several]
        if len(several) > 1 and all(found):
            return ""
        if found[0] is None:
            return rest[0]
        command, rest = found[0], rest[1:]
    allowed = {"-h", "--help", "--version"}
    for option in command.params:
        allowed |= {*option.opts, *option.secondary_opts}
    said = [re.match(r"--?[a-zA-Z][\w-]*", word.lstrip("[")) for word in rest]
    return next((each[0] for each in said if each and each[0] not in allowed), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one(page: Path) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        assert not wrong(words), " ".join(words)


def test_a_wrong_command_line_is_seen() -> None:
    assert wrong(["pxed", "client", "wipe"]) == "wipe"
    assert wrong(["pxed", "client", "boot", "all", "local", "--twice"]) == "--twice"
    assert not wrong(["pxed", "client", "boot", "all", "local", "--once"])
    assert list(command_lines("run `sudo pxed serve -i eth1`")) == [["pxed", "serve", "-i", "eth1"]]


def guide() -> dict[str, Any]:
    """The first example of the operators' guide, which is to have every key."""
    text = (ROOT / "docs/operators.md").read_text(encoding="utf-8")
    return tomllib.loads(blocks(text, "toml")[0])


def test_every_example_of_a_configuration_is_valid() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "toml"):
            config.parse(block, page.name, interface="eth0")


def flat(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


KINDS = {"dhcp": config.Dhcp, "tftp": config.Tftp, "http": config.Http, "aoe": config.Aoe,
         "midlayer": config.Midlayer, "clients": config.Admission,
         "control": config.ControlSocket, "events": config.Events, "security": config.Security,
         "class.x86": config.Class}  # fmt: skip


@pytest.mark.parametrize("table", KINDS)
def test_the_guide_has_every_key_with_its_default(table: str) -> None:
    shown = flat(guide())
    for each in fields(KINDS[table]):
        key = f"{table}.{each.name}"
        if each.name == "provision":
            continue
        assert key in shown, key
        if key not in CHOSEN:
            assert each.metadata["parse"](shown[key]) == each.default, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, part = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if part:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in [
                re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in heads
            ]
