"""The core and the plain Python reference give the same replies and leave the same images.

PXED_DIFF_FRAMES sets how many frames (default a million, some 10 s), PXED_DIFF_SEED which ones. A
failure prints the seed and the frame; the state before it is rebuilt by running the seed again.
"""

import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aoe_fast.target", reason="the extension is not built: run script/bootstrap")

from aoe_fast import Export, Target
from tests.reference.aoe_reference import ReferenceExport, ReferenceTarget

FRAMES = int(os.environ.get("PXED_DIFF_FRAMES", "1000000"))
SEED = int(os.environ.get("PXED_DIFF_SEED", "1"))
WORLD_FRAMES = 2500
"""Then everything starts afresh: masks and reservations may have shut everyone out by then."""

OWN = bytes.fromhex("525400000001")
CLIENTS = [bytes.fromhex(f"5254000001{i:02x}") for i in range(4)]
BROADCAST = b"\xff" * 6
MTUS = [1500, 1500, 1500, 9000, 9000, 4470, 4000, 1060]
ADDRESSES = [(16, 0), (16, 1), (16, 3), (17, 0), (17, 3), (0, 0), (65534, 254)]
OPCODES = [0x20, 0x24, 0x30, 0x34]
BIG_SECTORS = (1 << 28) + 7


class Zeroes(bytearray):
    """A disk of any size that holds nothing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: slice) -> bytearray:  # type: ignore[override]
        return bytearray(at.stop - at.start)


class World:
    """One target of each kind, with the same views of equal exports."""

    def __init__(self, rng: random.Random, where: Path) -> None:
        flags: dict[str, Any] = {
            "wire_config": rng.random() < 0.7,
            "wire_reserve": rng.random() < 0.7,
        }
        bufcnt = rng.choice([2, 64, 65535])
        self.core = Target(bufcnt=bufcnt, **flags)
        self.reference = ReferenceTarget(bufcnt=bufcnt, **flags)
        self.pairs: list[tuple[Export, ReferenceExport]] = []
        self.paths: list[Path] = []
        for number, (sectors, writable) in enumerate(
            [(1, True), (8, True), (37, True), (300, True), (64, False), (BIG_SECTORS, False)]
        ):
            self.paths.append(path := where / f"{number}.img")
            serial = rng.choice(["S", "seat 1", "12345678901234567890"])
            disk: bytearray
            if sectors == BIG_SECTORS:
                with path.open("wb") as file:
                    file.truncate(sectors * 512)
                disk = Zeroes(sectors * 512)
            else:
                disk = bytearray(rng.randbytes(sectors * 512))
                # The file may go on behind what is served.
                path.write_bytes(disk + b"tail" * rng.randrange(3))
            export = Export(
                path,
                writable=writable,
                length=sectors * 512,
                durability=rng.choice(["durable", "writeback"]),
                serial=serial,
            )
            self.pairs.append((export, ReferenceExport(disk, writable, serial)))
        for mac in [None, *CLIENTS[:3]]:
            self.new_view(rng, mac)

    def new_view(self, rng: random.Random, mac: bytes | None) -> None:
        bindings = {
            address: rng.choice(self.pairs)
            for address in rng.sample(ADDRESSES, rng.randrange(len(ADDRESSES) + 1))
        }
        self.core.set_view(mac, {at: pair[0] for at, pair in bindings.items()})
        self.reference.set_view(mac, {at: pair[1] for at, pair in bindings.items()})

    def change(self, rng: random.Random) -> None:
        mac = rng.choice([None, *CLIENTS])
        if mac is not None and rng.random() < 0.3:
            self.core.drop_view(mac)
            self.reference.drop_view(mac)
        else:
            self.new_view(rng, mac)

    def check_images(self) -> None:
        for path, (export, model) in zip(self.paths, self.pairs, strict=True):
            if not isinstance(model.disk, Zeroes):
                assert path.read_bytes()[: len(model.disk)] == model.disk, export

    def close(self) -> None:
        for mac in [None, *CLIENTS]:
            self.core.drop_view(mac)
        for export, _ in self.pairs:
            export.close()


def ata(rng: random.Random) -> bytes:
    opcode = rng.choice(OPCODES) if rng.random() < 0.8 else rng.choice([0xEC, 0xE7, 0xEA, 0xE5])
    if rng.random() < 0.04:
        opcode = rng.randrange(256)
    aflags = rng.choice([0x00, 0x40, 0x40, 0x41, 0x01, 0x43, 0x10, 0x50, rng.randrange(256)])
    count = rng.choice([1, 1, 2, 2, 2, 3, 7, 8, 16, 17, 0, 255, rng.randrange(256)])
    end = rng.choice([1, 8, 37, 64, 300, 1 << 28, BIG_SECTORS, 1 << 32, 1 << 48])
    lba = max(0, end - count + rng.choice([-1, 0, 0, 1])) if rng.random() < 0.5 else 0
    if rng.random() < 0.4:
        lba = rng.randrange(300)
    lba &= (1 << 48) - 1
    if not aflags & 0x40 and rng.random() < 0.5:
        nibble = rng.choice([0xE, 0xE, rng.randrange(16)])
        lba = (lba & 0x0FFFFFFF) | nibble << 28 | rng.choice([0, 0, 1, 2]) << 32
    body = bytes([aflags, rng.choice([0, 0xFF]), count, opcode])
    body += lba.to_bytes(6, "little") + rng.choice([b"\0\0", b"\x5a\xa5"])
    if opcode in (0x30, 0x34):
        size = count * 512 + rng.choice([0, 0, 0, 0, -1, -512, 1, 300])
        body += rng.randbytes(8) * (max(0, size) // 8) + b"x" * (max(0, size) % 8)
    elif rng.random() < 0.1:
        body += bytes(rng.randrange(1400))
    return body


STRINGS = [b"", b"a", b"ab", b"abc", b"b" * 40, b"b" * 60, b"c" * 1023, b"c" * 1024, b"c" * 1025]


def config(rng: random.Random) -> bytes:
    string = rng.choice(STRINGS)
    command = rng.choice([0, 0, 1, 2, 3, 3, 4, 4, 5, rng.randrange(16)])
    size = len(string) if rng.random() < 0.9 else rng.choice([0, 1024, 1025, 65535])
    junk = rng.randrange(65536)
    return struct.pack(
        "!HHBBH", junk, junk, junk & 0xFF, rng.choice([0, 1]) << 4 | command, size
    ) + (string)


def mask(rng: random.Random) -> bytes:
    count = rng.choice([0, 1, 2, 4, 4, 70])
    body = b""
    if rng.random() < 0.5:
        # Everyone at once, so that the device does not vanish for good.
        body = b"".join(b"\0\1" + mac for mac in CLIENTS)
        count = 4
    elif rng.random() < 0.1:
        # More than any list holds, ourselves first.
        body = b"".join(b"\0\1" + mac for mac in CLIENTS)
        body += b"".join(b"\0\1" + rng.randbytes(6) for _ in range(66))
        count = 70
    else:
        for _ in range(count):
            directive = rng.choice([0, 1, 2, 2, 2, 3, rng.randrange(256)])
            mac = rng.choice(CLIENTS) if rng.random() < 0.7 else rng.randbytes(6)
            body += bytes([rng.randrange(256), directive]) + mac
    if rng.random() < 0.1:
        count = rng.randrange(256)
    return bytes([0, rng.choice([0, 0, 1, 1, 1, 2, 255]), rng.randrange(256), count]) + body


def reserve(rng: random.Random) -> bytes:
    count = rng.choice([0, 0, 1, 2, 4, 64, 65])
    body = b"".join(rng.choice(CLIENTS) for _ in range(count))
    if rng.random() < 0.1:
        count = rng.randrange(256)
    return bytes([rng.choice([0, 1, 1, 2, 2, 3, 255]), count]) + body


def frame(rng: random.Random) -> bytes:
    """One frame: well formed most of the time, damaged in one of many ways else."""
    command = rng.choices([0, 1, 2, 3, rng.randrange(4, 256)], [60, 15, 8, 8, 1])[0]
    body = {0: ata, 1: config, 2: mask, 3: reserve}.get(command, ata)(rng)
    shelf, slot = rng.choice(ADDRESSES)
    if rng.random() < 0.12:
        shelf = 0xFFFF
    if rng.random() < 0.12:
        slot = 0xFF
    if rng.random() < 0.03:
        shelf, slot = rng.choice([(4095, 0), (16, 2), (0x1000, 0), (0xFF, 0xFF)])
    head = rng.choice([OWN, OWN, OWN, BROADCAST]) + rng.choice(CLIENTS)
    head += b"\x88\xa2\x10\0" + struct.pack("!HBB", shelf, slot, command) + rng.randbytes(4)
    data = bytearray(head + body)
    if rng.random() < 0.5:
        data = data.ljust(60, b"\0")
    damage = rng.random()
    if damage < 0.06:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(len(data), 48))] = rng.randrange(256)
    elif damage < 0.09:
        del data[rng.randrange(len(data)) :]
    elif damage < 0.12:
        data += rng.randbytes(rng.randrange(64))
    elif damage < 0.14:
        data[14] = rng.choice([0x18, 0x14, 0x1C, 0x11, 0x00, 0x20, 0xF0])
    elif damage < 0.16:
        data[rng.choice([0, 5, 6, 11, 12, 13])] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory in memory if there is one: durable writes then cost no disk."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pxed-diff-", dir=base) as name:
        yield Path(name)


@pytest.mark.timeout(600 + FRAMES // 50)
def test_core_and_reference_agree(room: Path) -> None:
    left, number = FRAMES, 0
    answered = 0
    while left > 0:
        rng = random.Random(SEED * 1_000_003 + number)
        world = World(rng, room)
        try:
            for index in range(min(left, WORLD_FRAMES)):
                if rng.random() < 0.01:
                    world.change(rng)
                data, mtu = frame(rng), rng.choice(MTUS)
                got = world.core.handle(data, OWN, mtu)
                want = world.reference.handle(data, OWN, mtu)
                answered += bool(got)
                if got != want:
                    pytest.fail(
                        f"seed {SEED}, world {number}, frame {index}, MTU {mtu}\n"
                        f"frame     {data.hex()}\n"
                        f"core      {[reply.hex() for reply in got]}\n"
                        f"reference {[reply.hex() for reply in want]}",
                        pytrace=False,
                    )
            world.check_images()
        finally:
            world.close()
        left -= WORLD_FRAMES
        number += 1
    # The generator must reach the devices, not only the silence around them.
    assert answered > FRAMES / 5


@pytest.mark.parametrize("count", [1, 2, 17])
def test_reference_reads_what_it_wrote(count: int) -> None:
    """The reference is itself checked where a mistake would hide one of the core's."""
    target = ReferenceTarget()
    disk = ReferenceExport(bytearray(64 * 512), writable=True)
    target.set_view(None, {(1, 2): disk})
    head = OWN + CLIENTS[0] + b"\x88\xa2\x10\0\0\1\2\0tagg"
    payload = b"\x77" * 512 * count
    write = head + bytes([0x41, 0, count, 0x34, 5, 0, 0, 0, 0, 0, 0, 0]) + payload
    (reply,) = target.handle(write, OWN, 9000)
    if count == 17:
        assert reply[27] == 0x41
        assert reply[25] == 0x04
        return
    assert reply[27] == 0x40
    assert disk.disk == bytes(5 * 512) + payload + bytes((59 - count) * 512)
    read = head + bytes([0x40, 0, count, 0x24, 5, 0, 0, 0, 0, 0, 0, 0])
    (reply,) = target.handle(read, OWN, 9000)
    assert reply[36:] == payload
    assert reply[:6] == CLIENTS[0]
    assert reply[6:12] == OWN
    assert reply[20:24] == b"tagg"
