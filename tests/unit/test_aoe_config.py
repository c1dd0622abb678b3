"""Target.handle: class 1, config strings."""

from pathlib import Path
from typing import Any

import pytest

from aoe_fast import Export, Target
from tests.aoe_frames import SERVER, Reply, config, frame

READ, TEST, PREFIX, SET, FORCE = range(5)


def make(tmp_path: Path, **options: Any) -> Target:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    target = Target(**options)
    target.set_view(None, {(16, 3): Export(path)})
    return target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make(tmp_path, wire_config=True)


def send(target: Target, subcommand: int, text: bytes = b"", mtu: int = 1500) -> Reply | None:
    replies = target.handle(frame(1, config(subcommand, text)), SERVER, mtu)
    return Reply(replies[0]) if replies else None


def ask(target: Target, subcommand: int, text: bytes = b"", mtu: int = 1500) -> Reply:
    reply = send(target, subcommand, text, mtu)
    assert reply is not None
    assert len(reply.raw) >= 60
    return reply


def test_read_of_nothing(target: Target) -> None:
    reply = ask(target, READ)
    assert reply.body[:2] == (64).to_bytes(2, "big")
    assert reply.body[4] == 2
    assert reply.body[5] == 0x10
    assert reply.text == b""


@pytest.mark.parametrize(("mtu", "sectors"), [(1500, 2), (1000, 1), (4132, 8), (9000, 16)])
def test_the_advertised_sectors_follow_the_mtu(target: Target, mtu: int, sectors: int) -> None:
    assert ask(target, READ, mtu=mtu).body[4] == sectors


def test_the_advertised_depth_is_the_targets(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    target = Target(bufcnt=300)
    target.set_view(None, {(16, 3): Export(path)})
    assert ask(target, READ).body[:2] == (300).to_bytes(2, "big")


def test_read_ignores_the_length(target: Target) -> None:
    assert len(target.handle(frame(1, config(READ, length=0xFFFF)), SERVER)) == 1


def test_read_ignores_a_length_equal_to_the_strings(target: Target) -> None:
    """Found by AddressSanitizer: the string was compared with bytes behind the frame."""
    ask(target, SET, b"y" * 1000)
    (raw,) = target.handle(frame(1, config(READ, length=1000)), SERVER)
    assert Reply(raw).text == b"y" * 1000


@pytest.mark.parametrize("text", [b"x", b"seat-01", b"y" * 28, b"y" * 29, b"z" * 1024])
def test_set_then_read(target: Target, text: bytes) -> None:
    assert ask(target, SET, text).text == text
    assert ask(target, READ).text == text


def test_set_over_another_string_is_error_4(target: Target) -> None:
    ask(target, SET, b"one")
    assert ask(target, SET, b"two").error == 4
    assert ask(target, READ).text == b"one"


def test_set_of_the_same_string_again_succeeds(target: Target) -> None:
    ask(target, SET, b"one")
    assert ask(target, SET, b"one").error == 0


def test_force_replaces(target: Target) -> None:
    ask(target, SET, b"one")
    assert ask(target, FORCE, b"two").error == 0
    assert ask(target, READ).text == b"two"


def test_force_of_nothing_empties(target: Target) -> None:
    ask(target, SET, b"one")
    ask(target, FORCE)
    assert ask(target, READ).text == b""


@pytest.mark.parametrize(
    ("subcommand", "text", "answers"),
    [
        (TEST, b"seat-01", True),
        (TEST, b"seat-0", False),
        (TEST, b"seat-012", False),
        (TEST, b"", False),
        (PREFIX, b"seat-01", True),
        (PREFIX, b"seat", True),
        (PREFIX, b"", True),
        (PREFIX, b"seat-012", False),
        (PREFIX, b"eat", False),
    ],
)
def test_a_test_that_fails_is_silent(
    target: Target, subcommand: int, text: bytes, answers: bool
) -> None:
    ask(target, SET, b"seat-01")
    assert (send(target, subcommand, text) is not None) is answers


@pytest.mark.parametrize("subcommand", [TEST, PREFIX, SET, FORCE])
@pytest.mark.parametrize("length", [4, 1025, 0xFFFF])
def test_a_length_beyond_frame_or_limit_is_error_2(
    target: Target, subcommand: int, length: int
) -> None:
    (raw,) = target.handle(frame(1, config(subcommand, b"abc", length=length)), SERVER)
    assert Reply(raw).error == 2


@pytest.mark.parametrize("subcommand", [5, 15])
def test_another_subcommand_is_error_2(target: Target, subcommand: int) -> None:
    assert ask(target, subcommand).error == 2


@pytest.mark.parametrize("subcommand", [SET, FORCE])
def test_changes_are_refused_by_default(tmp_path: Path, subcommand: int) -> None:
    target = make(tmp_path)
    assert ask(target, subcommand, b"mine").error == 4
    assert ask(target, READ).text == b""


def test_no_change_is_no_refusal(tmp_path: Path) -> None:
    assert ask(make(tmp_path), SET, b"").error == 0
