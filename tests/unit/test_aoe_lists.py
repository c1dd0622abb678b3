"""Target.handle: class 2 (MAC mask) and class 3 (reserve and release)."""

from pathlib import Path
from typing import Any

import pytest

from aoe_fast import Export, Target
from tests.aoe_frames import (
    CLIENT,
    IDENTIFY,
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

NOP, ADD, DELETE = 0, 1, 2
SET, FORCE = 1, 2


def make(tmp_path: Path, **options: Any) -> Target:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    target = Target(**options)
    target.set_view(None, {(16, 3): Export(path)})
    return target


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return make(tmp_path, wire_reserve=True)


def ask(target: Target, request: bytes) -> Reply:
    (raw,) = target.handle(request, SERVER)
    assert len(raw) >= 60
    return Reply(raw)


def edit(target: Target, *directives: tuple[int, bytes]) -> Reply:
    return ask(target, frame(2, mask(1, *directives)))


def masked(target: Target) -> list[bytes]:
    body = ask(target, frame(2, mask(0))).body
    return [body[6 + 8 * i : 12 + 8 * i] for i in range(body[3])]


def hold(target: Target, command: int, *macs: bytes, src: bytes = CLIENT) -> Reply:
    return ask(target, frame(3, reserve(command, *macs), src=src))


def holders(target: Target) -> list[bytes]:
    body = hold(target, 0).body
    return [body[2 + 6 * i : 8 + 6 * i] for i in range(body[1])]


def some_mac(number: int) -> bytes:
    return b"\x02\0\0\0\x01" + bytes([number])


# Class 2.


def test_an_empty_mask_is_everyone(target: Target) -> None:
    assert masked(target) == []
    assert ask(target, ata(READ, 0, 1, src=STRANGER)).status == 0x40


def test_a_mask_hides_the_device_from_others(target: Target) -> None:
    edit(target, (ADD, CLIENT))
    assert masked(target) == [CLIENT]
    assert ask(target, ata(READ, 0, 1)).status == 0x40
    for request in (
        ata(READ, 0, 1, src=STRANGER),
        frame(1, config(0), src=STRANGER),
        frame(2, mask(0), src=STRANGER),
        frame(3, reserve(0), src=STRANGER),
        frame(77, src=STRANGER),
    ):
        assert target.handle(request, SERVER) == []


def test_delete_takes_a_mac_off(target: Target) -> None:
    edit(target, (ADD, CLIENT), (ADD, STRANGER), (NOP, some_mac(1)))
    edit(target, (DELETE, STRANGER), (DELETE, some_mac(9)))
    assert masked(target) == [CLIENT]


def test_adding_twice_lists_once(target: Target) -> None:
    edit(target, (ADD, CLIENT), (ADD, CLIENT))
    assert masked(target) == [CLIENT]


def test_directives_before_a_bad_one_stay(target: Target) -> None:
    reply = edit(target, (ADD, CLIENT), (3, STRANGER), (ADD, some_mac(1)))
    assert (reply.error, reply.body[2]) == (0, 2)
    assert masked(target) == [CLIENT]


def test_a_full_list_is_merror_3(target: Target) -> None:
    edit(target, (ADD, CLIENT), *((ADD, some_mac(i)) for i in range(63)))
    assert edit(target, (ADD, some_mac(63))).body[2] == 3
    assert len(masked(target)) == 64


def test_a_count_beyond_the_frame_is_error_2(target: Target) -> None:
    request = frame(2, mask(1, (ADD, CLIENT)))
    assert ask(target, request[:-1]).error == 2


@pytest.mark.parametrize("command", [2, 255])
def test_another_mask_command_is_error_2(target: Target, command: int) -> None:
    assert ask(target, frame(2, mask(command))).error == 2


def test_mask_edits_are_refused_by_default(tmp_path: Path) -> None:
    target = make(tmp_path)
    assert edit(target, (ADD, CLIENT)).body[2] == 1
    assert masked(target) == []


# Class 3.


def test_nobody_holds_a_device_at_first(target: Target) -> None:
    assert holders(target) == []


def test_a_reserved_device_gives_others_error_6_but_identify(target: Target) -> None:
    assert hold(target, SET, CLIENT).error == 0
    assert holders(target) == [CLIENT]
    assert ask(target, ata(READ, 0, 1)).status == 0x40
    assert ask(target, ata(READ, 0, 1, src=STRANGER)).error == 6
    assert len(ask(target, ata(IDENTIFY, src=STRANGER)).data) == 512
    assert ask(target, frame(1, config(0), src=STRANGER)).error == 0


def test_only_a_holder_may_set(target: Target) -> None:
    hold(target, SET, CLIENT)
    assert hold(target, SET, STRANGER, src=STRANGER).error == 6
    assert hold(target, SET, CLIENT, STRANGER).error == 0
    assert holders(target) == [CLIENT, STRANGER]


def test_set_of_nobody_releases(target: Target) -> None:
    hold(target, SET, CLIENT)
    hold(target, SET)
    assert ask(target, ata(READ, 0, 1, src=STRANGER)).status == 0x40


def test_force_takes_a_device_over(target: Target) -> None:
    hold(target, SET, CLIENT)
    assert hold(target, FORCE, STRANGER, src=STRANGER).error == 0
    assert holders(target) == [STRANGER]


def test_a_list_of_64_fits_a_reply(target: Target) -> None:
    macs = [some_mac(i) for i in range(64)]
    hold(target, SET, *macs)
    assert holders(target) == macs
    assert hold(target, FORCE, *macs, CLIENT).error == 2


def test_macs_beyond_the_frame_are_error_2(target: Target) -> None:
    assert ask(target, frame(3, reserve(SET, CLIENT))[:-1]).error == 2


@pytest.mark.parametrize("command", [3, 255])
def test_another_reserve_command_is_error_2(target: Target, command: int) -> None:
    assert hold(target, command).error == 2


@pytest.mark.parametrize("command", [SET, FORCE])
def test_reservations_are_refused_by_default(tmp_path: Path, command: int) -> None:
    target = make(tmp_path)
    assert hold(target, command, CLIENT).error == 6
    assert holders(target) == []
