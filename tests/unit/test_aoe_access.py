"""Who may do what: every command of every class, tried on every device that is somebody else's."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from aoe_fast.admin import read_settings
from tests.aoe_frames import (
    BROADCAST,
    CLIENT,
    IDENTIFY,
    READ,
    READ_EXT,
    SERVER,
    STRANGER,
    WRITE,
    WRITE_EXT,
    Reply,
    ata,
    config,
    frame,
    mask,
    reserve,
)  # fmt: skip

OTHER = bytes.fromhex("0200000000c2")
SECRET = b"SECRET: " * 64
BOOT, ROOT, CONFIG, REPORT = (16, 0), (16, 1), (16, 3), (16, 4)
HIDDEN = (16, 7)  # in the view, but its own MAC mask names another


@dataclass
class Room:
    """Two clients with private devices of their own, one address plan, wire settings allowed."""

    target: Target
    mine: Export
    theirs: Export
    files: dict[str, Path]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    files = {name: tmp_path / name for name in ("boot", "root", "mine", "theirs", "rpi", "masked")}
    for path in files.values():
        path.write_bytes(SECRET * 16)
    shared = {name: Export(files[name]) for name in ("boot", "root", "rpi")}
    own = {name: Export(files[name], writable=True) for name in ("mine", "theirs", "masked")}
    target = Target(wire_config=True, wire_reserve=True)
    default = {BOOT: shared["boot"], ROOT: shared["root"]}
    target.set_view(None, default)
    target.set_view(CLIENT, default | {CONFIG: own["mine"]})
    target.set_view(OTHER, default | {CONFIG: own["theirs"], REPORT: own["theirs"],
                                      (17, 0): shared["rpi"], HIDDEN: own["masked"]})  # fmt: skip
    target.handle(frame(2, mask(1, (1, OTHER)), src=OTHER, slot=7), SERVER)
    yield Room(target, own["mine"], own["theirs"], files)
    for export in (*shared.values(), *own.values()):
        export.close()


def bodies() -> list[tuple[str, int, bytes]]:
    """Every command there is: all ATA opcodes, every subcommand of the other classes."""
    found = []
    for opcode in range(256):
        writes = opcode in (WRITE, WRITE_EXT)
        request = ata(opcode, 0, 1, data=b"w" * 512 if writes else b"")
        found.append((f"ata {opcode:02x}", 0, request[24:]))
    found += [(f"config {n}", 1, config(n, b"taken")) for n in range(16)]
    found += [(f"mask {n}", 2, mask(n, (1, STRANGER), (2, OTHER))) for n in range(3)]
    found += [(f"reserve {n}", 3, reserve(n, STRANGER)) for n in range(4)]
    found += [(f"class {n}", n, bytes(64)) for n in (4, 0x10, 0xF0, 0xFF)]
    return found


COMMANDS = bodies()


def state_of(room: Room) -> tuple[object, ...]:
    settings = read_settings(room.theirs)
    return (*(path.read_bytes() for path in room.files.values()), settings.config,
            settings.allowed, settings.holders)  # fmt: skip


@pytest.mark.parametrize("name", sorted({name.split()[0] for name, _, _ in COMMANDS}))
@pytest.mark.parametrize("dst", [SERVER, BROADCAST], ids=["unicast", "broadcast"])
def test_no_command_reaches_a_foreign_device(room: Room, name: str, dst: bytes) -> None:
    """Nor does silence differ from that at an address where nothing is."""
    before = state_of(room)
    foreign = {CLIENT: [REPORT, (17, 0), HIDDEN], STRANGER: [CONFIG, REPORT, (17, 0), HIDDEN]}
    for title, command, body in COMMANDS:
        if title.split()[0] != name:
            continue
        for source, addresses in foreign.items():
            for shelf, slot in [*addresses, (16, 9), (99, 3)]:
                request = frame(command, body, src=source, dst=dst, shelf=shelf, slot=slot)
                assert room.target.handle(request, SERVER) == [], f"{title} at {shelf}.{slot}"
    assert state_of(room) == before


@pytest.mark.parametrize(
    ("shelf", "slot"), [(0xFFFF, 0xFF), (16, 0xFF), (0xFFFF, 3), (0xFFFF, 4), (17, 0xFF)]
)
def test_no_wildcard_shows_a_foreign_device(room: Room, shelf: int, slot: int) -> None:
    seen = {CLIENT: {BOOT, ROOT, CONFIG}, STRANGER: {BOOT, ROOT}}
    for source, (_, command, body) in itertools.product(seen, COMMANDS):
        if command in (2, 3) or (command == 1 and body[5] & 0xF in (3, 4)):
            continue  # these change what is one's own
        request = frame(command, body, src=source, dst=BROADCAST, shelf=shelf, slot=slot)
        for raw in room.target.handle(request, SERVER):
            assert Reply(raw).address in seen[source]


def test_the_same_address_is_another_device_for_each(room: Room) -> None:
    room.target.handle(ata(WRITE_EXT, 0, 1, data=b"m" * 512, src=CLIENT), SERVER)
    assert room.files["mine"].read_bytes()[:512] == b"m" * 512
    assert room.files["theirs"].read_bytes() == SECRET * 16
    (raw,) = room.target.handle(ata(READ_EXT, 0, 1, src=OTHER), SERVER)
    assert Reply(raw).data == SECRET


def test_reserving_ones_own_does_not_reserve_anothers(room: Room) -> None:
    (raw,) = room.target.handle(frame(3, reserve(1, CLIENT), src=CLIENT), SERVER)
    assert Reply(raw).error == 0
    (raw,) = room.target.handle(ata(READ, 0, 1, src=OTHER), SERVER)
    assert Reply(raw).status == 0x40


def test_a_view_that_is_taken_away_is_gone_at_once(room: Room) -> None:
    assert room.target.handle(ata(IDENTIFY, count=1, src=OTHER), SERVER) != []
    room.target.set_view(OTHER, {})
    for _, command, body in COMMANDS:
        assert room.target.handle(frame(command, body, src=OTHER, dst=BROADCAST,
                                        shelf=0xFFFF, slot=0xFF), SERVER) == []  # fmt: skip


@pytest.mark.parametrize(
    ("command", "body"),
    [(1, config(3, b"taken")), (1, config(4, b"taken")), (2, mask(1, (1, STRANGER))),
     (3, reserve(1, CLIENT)), (3, reserve(2, CLIENT))],
    ids=["set", "force", "mask", "reserve", "take over"],
)  # fmt: skip
def test_settings_from_the_wire_are_off_by_default(
    tmp_path: Path, command: int, body: bytes
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    for allowed in (False, True):
        target = Target(wire_config=True, wire_reserve=True) if allowed else Target()
        with Export(path, writable=True) as export:
            target.set_view(None, {CONFIG: export})
            (raw,) = target.handle(frame(command, body, src=CLIENT), SERVER)
            settings = read_settings(export)
            changed = bool(settings.config or settings.allowed or settings.holders)
            assert changed == allowed
            if not allowed:
                assert Reply(raw).error or raw[25]  # refused, in the class's own words
