"""What ``pxed`` says to mistakes on its command line, and of itself: a line for each."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result

from aoe_fast.cli import cli as aoe_fast_cli
from pxed import cli, cli_base, doctor
from pxed.cli import main
from pxed.config import Config
from pxed.errors import HostError
from pxed.store import Store


def say(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="pxed")


def commands(
    group: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from commands(command, (*path, name))


ALL = list(commands())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["serve", "--foo"], "--foo"),
        (["nothing"], "'nothing'"),
        (["client", "nothing"], "'nothing'"),
        (["image", "build", "nothing"], "'nothing'"),
        (["client", "boot"], "SEL... ORDER"),
        (["size", "--clients", "x"], "--clients"),
        (["config", "check", "more"], "more"),
        (["--foo"], "--foo"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], part: str) -> None:
    done = say(*words)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pxed: ")
    assert part in line
    assert line.endswith(" --help")
    assert not done.stdout


@pytest.mark.parametrize(("path", "command"), ALL, ids=["-".join(path) for path, _ in ALL])
def test_help_is_narrow_and_whole(path: tuple[str, ...], command: click.Command) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], prog_name="pxed", terminal_width=80)
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    if isinstance(command, click.Group):
        assert "..." not in shown.output.partition("Commands:")[2].replace("MAC...", "")


@pytest.mark.parametrize(("path", "command"), ALL, ids=["-".join(path) for path, _ in ALL])
def test_what_lists_or_shows_has_json(path: tuple[str, ...], command: click.Command) -> None:
    if path and path[-1] in {"list", "show", "status", "event", "doctor", "verify", "size"}:
        assert "--json" in {word for each in command.params for word in each.opts}


def test_aoe_fast_says_its_sentences_whole() -> None:
    for words in (["--help"], ["export", "--help"]):
        shown = CliRunner().invoke(aoe_fast_cli, words, terminal_width=80).output
        assert "..." not in shown.partition("Commands:")[2]


def test_without_an_interface_those_that_are_there_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli_base, "DEFAULT_CONFIG", tmp_path / "none.toml")
    monkeypatch.setattr("pxed.net.link.names", lambda: ["eth1", "eth0"])
    done = say("serve")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "which interface" in line
    assert "-i" in line
    assert "eth0, eth1" in line


def test_config_check_without_a_file_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", tmp_path / "none.toml")
    done = say("config", "check")
    assert done.exit_code == 2
    assert f"{tmp_path}/none.toml: no such file" in done.stderr


def test_a_configuration_that_may_not_be_read(tmp_path: Path) -> None:
    """Root reads everything, so this is a directory."""
    done = say("config", "check", "-c", str(tmp_path))
    assert done.exit_code == 2
    assert "cannot read the configuration" in done.stderr


def test_what_may_not_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/var/lib/pxed/images")

    monkeypatch.setattr("pxed.images.find", refuse)
    done = say("image", "verify", "lab", "--state-dir", str(tmp_path))
    assert done.exit_code == 1
    assert done.stderr == "pxed: /var/lib/pxed/images: no permission: run as root\n"


def test_no_option_is_refused_because_this_user_may_not_read_it() -> None:
    """Such a path is for the server to read, or for what says what to do."""
    for path, command in ALL:
        for each in command.params:
            if each.name in {"config_path", "state_dir"}:
                assert isinstance(each.type, click.Path), path
                assert not each.type.readable, path


def test_an_event_of_another_day_has_its_date() -> None:
    then = time.time() - 3 * 86400
    entry = {"id": 1, "time": then, "kind": "boot", "mac": None}
    day = time.strftime("%Y-%m-%d ", time.localtime(then))
    assert cli._event_line(entry, lambda _: "").startswith(day)
    entry["time"] = time.time()
    assert cli._event_line(entry, lambda _: "")[2] == ":"


def full(_path: Path) -> SimpleNamespace:
    return SimpleNamespace(total=1 << 30, used=1 << 30, free=4096)


def test_a_full_disk_is_not_called_a_damaged_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pxed.db").mkdir()  # SQLite cannot open that
    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(HostError, match=r"its disk is full \(4 KiB\): free some space"):
        Store(tmp_path / "pxed.db")
    monkeypatch.undo()
    with pytest.raises(HostError, match="move it away"):
        Store(tmp_path / "pxed.db")


def test_a_second_image_says_that_one_must_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(8192))
    (tmp_path / "one.toml").write_text('[class.x86]\nimage = "one"\n')
    said = {}
    for name, words in (("one", []), ("two", []), ("three", ["-c", str(tmp_path / "one.toml")])):
        done = say(
            "image", "add", "--name", name, "--version", "1", "--boot", str(tmp_path / "disk"),
            "--root", str(tmp_path / "disk"), "--state-dir", str(tmp_path), *words,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        said[name] = done.stderr
    assert said["one"] == said["three"] == ""
    (line,) = said["two"].splitlines()
    assert line.startswith("before pxed serve starts again")
    assert line.endswith('there are one, two: set image = "NAME" under [class.x86]')


def test_a_clock_that_is_behind_is_seen(tmp_path: Path) -> None:
    config = Config(interface="eth0", state_dir=tmp_path)
    (found,) = doctor.check_clock(config)
    assert found.grade == doctor.OK
    (tmp_path / "pxed.db").touch()
    os.utime(tmp_path / "pxed.db", (time.time() + 86400 * 40,) * 2)
    (found,) = doctor.check_clock(config)
    assert found.grade == doctor.BROKEN
    assert "already" in found.text


def test_a_server_that_may_not_be_asked_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_what: str) -> None:
        raise HostError("control.sock: no permission: run as root")

    monkeypatch.setattr(doctor, "server", lambda *_: SimpleNamespace(get=refuse))
    done = say("doctor", "-i", "lo", "--json", "--state-dir", str(tmp_path))
    assert done.exit_code == 1
    last = json.loads(done.stdout)[-1]
    assert (last["about"], last["grade"]) == ("server", doctor.BROKEN)
    assert "no permission" in last["text"]
