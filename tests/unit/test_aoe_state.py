"""Settings that survive: the administrator's hand on them, and the state file."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from aoe_fast import AoeError, Export, Target
from aoe_fast.admin import Settings, read_settings, write_settings
from tests.aoe_frames import (
    CLIENT,
    READ,
    SERVER,
    STRANGER,
    Reply,
    ata,
    config,
    frame,
    mask,
    reserve,
)


def ask(target: Target, request: bytes) -> Reply | None:
    replies = target.handle(request, SERVER)
    return Reply(replies[0]) if replies else None


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def make(state: Path, *disks: Path, **options: Any) -> tuple[Target, list[Export]]:
    target = Target(state=state, wire_config=True, wire_reserve=True)
    exports = [Export(disk, **options) for disk in disks]
    target.set_view(None, {(16, slot): export for slot, export in enumerate(exports, 3)})
    return target, exports


def test_what_clients_set_survives_a_restart(tmp_path: Path, disk: Path) -> None:
    state = tmp_path / "state.json"
    target, (export,) = make(state, disk)
    ask(target, frame(1, config(4, b"seat \xff 1")))
    ask(target, frame(2, mask(1, (1, CLIENT))))
    ask(target, frame(3, reserve(1, CLIENT)))
    assert not state.exists(), "saved on the data path"
    target.save_state()
    export.close()
    again, (export,) = make(state, disk)
    assert read_settings(export) == Settings(b"seat \xff 1", (CLIENT,), (CLIENT,))
    reply = ask(again, frame(1, config(0)))
    assert reply is not None
    assert reply.text == b"seat \xff 1"
    assert ask(again, ata(READ, 0, 1, src=STRANGER)) is None


def test_the_administrator_overrides_and_clears(tmp_path: Path, disk: Path) -> None:
    target, (export,) = make(tmp_path / "state.json", disk)
    ask(target, frame(2, mask(1, (1, CLIENT))))
    ask(target, frame(3, reserve(1, CLIENT)))
    write_settings(export, config=b"mine", allowed=())
    refused = ask(target, ata(READ, 0, 1, src=STRANGER))
    assert refused is not None
    assert refused.error == 6
    write_settings(export, holders=())
    assert read_settings(export) == Settings(b"mine")
    served = ask(target, ata(READ, 0, 1, src=STRANGER))
    assert served is not None
    assert served.status == 0x40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": b"x" * 1025}, "1024 at most"),
        ({"allowed": [CLIENT] * 65}, "64 at most"),
        ({"holders": [b"short"]}, "5 bytes: give 6"),
    ],
)
def test_bad_settings_change_nothing(disk: Path, options: dict[str, bytes], words: str) -> None:
    export = Export(disk)
    with pytest.raises(AoeError, match=words):
        write_settings(export, **{"config": b"new", **options})  # type: ignore[arg-type]
    assert read_settings(export) == Settings()


def test_settings_of_a_closed_export(disk: Path) -> None:
    export = Export(disk)
    export.close()
    with pytest.raises(AoeError, match="closed"):
        read_settings(export)


def test_unchanged_settings_write_nothing(tmp_path: Path, disk: Path) -> None:
    state = tmp_path / "state.json"
    target, (export,) = make(state, disk)
    target.save_state()
    assert not state.exists()
    write_settings(export, config=b"a")
    target.save_state()
    first = state.stat().st_mtime_ns
    write_settings(export, config=b"a")
    ask(target, frame(1, config(4, b"a")))
    target.save_state()
    assert state.stat().st_mtime_ns == first
    write_settings(export, config=b"")
    target.save_state()
    assert json.loads(state.read_text())["exports"] == {}


def test_parts_of_one_file_have_settings_of_their_own(tmp_path: Path, disk: Path) -> None:
    target = Target(state=tmp_path / "state.json")
    parts = [Export(disk, offset=at, length=512) for at in (0, 512)]
    target.set_view(None, {(16, 0): parts[0], (16, 1): parts[1]})
    for part, text in zip(parts, (b"one", b"two"), strict=True):
        write_settings(part, config=text)
    target.save_state()
    again = Target(state=tmp_path / "state.json")
    parts = [Export(disk, offset=at, length=512) for at in (0, 512)]
    again.set_view(None, {(16, 0): parts[0], (16, 1): parts[1]})
    assert [read_settings(part).config for part in parts] == [b"one", b"two"]


def test_dropping_a_view_forgets_nothing(tmp_path: Path, disk: Path) -> None:
    state = tmp_path / "state.json"
    target, (export,) = make(state, disk)
    write_settings(export, config=b"kept")
    target.drop_view(None)
    export.close()
    _, (export,) = make(state, disk)
    assert read_settings(export).config == b"kept"


def test_a_new_view_does_not_bring_old_settings_back(tmp_path: Path, disk: Path) -> None:
    state = tmp_path / "state.json"
    target, (export,) = make(state, disk)
    write_settings(export, config=b"old")
    target.save_state()
    target, (export,) = make(state, disk)
    write_settings(export, config=b"new")
    target.set_view(CLIENT, {(16, 3): export})
    assert read_settings(export).config == b"new"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "exports": {}}', '{"version": 1, "exports": {"a": 1}}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(AoeError, match=r"state\.json: is damaged"):
        Target(state=tmp_path / "state.json")


def test_a_full_disk_is_said_once_and_tried_again(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    target, (export,) = make(room / "state.json", disk)
    room.rmdir()
    with caplog.at_level(logging.WARNING, "aoe_fast"):
        for text in (b"a", b"b"):
            write_settings(export, config=text)
            target.save_state()
    assert len(caplog.records) == 1
    room.mkdir()
    target.save_state()
    assert (room / "state.json").exists()


def test_what_could_not_be_saved_is_kept_when_its_export_is_gone(
    tmp_path: Path, disk: Path
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    target, (export,) = make(room / "state.json", disk)
    (room / "state.json.new").mkdir()
    write_settings(export, config=b"kept")
    said = target.save_state()
    assert said is not None
    assert "state.json: cannot be saved" in said
    target.drop_view(None)
    export.close()
    assert target.save_state() is not None
    (room / "state.json.new").rmdir()
    assert target.save_state() is None
    _, (export,) = make(room / "state.json", disk)
    assert read_settings(export).config == b"kept"
