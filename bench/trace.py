"""A recorded boot: what one client asked for, in which order, and how long it thought before.

A trace file is zlib-compressed JSON behind one line of text. ``program`` turns it into what
``native/storm.c`` reads.
"""

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from pxed.errors import UsageError

MAGIC = b"pxed-trace 1\n"
_PROGRAM = b"PXEDSTRM"
_OP = struct.Struct("<BBHIQIIII")
_MOST = 64 << 20


class Kind(IntEnum):
    """An operation's kind; the numbers are those of storm.c."""

    DHCP = 1  # DISCOVER to ACK; blob: what the firmware says of itself; device: 1 broadcasts
    TFTP = 2  # a whole file; blob: its name; count: bytes; lba: block size
    FIND = 3  # iPXE's config query and IDENTIFY for one device
    SINGLE = 4  # iPXE's reads of ``count`` sectors from ``lba`` on, two at a time
    DISKS = 5  # the kernel's config query to all; lba: bits of the slots that it waits for
    READ = 6
    WRITE = 7
    TELL = 8  # a write to the report device; blob: its bytes
    RUNNING = 9
    HTTP = 10  # a file; blob: its path; count: bytes; device: what of it, see Part; lba: first byte


class Part(IntEnum):
    """What an HTTP operation asks for; its ``device``."""

    WHOLE = 0
    HEAD = 1  # UEFI asks how big a file is first
    RANGE = 2  # bytes ``lba`` to ``lba + count``


IMAGE_FILES = b"/image/"
"""Paths below it stand for files of an image, whose size is the trace's."""


ASIDE = frozenset((Kind.READ, Kind.WRITE, Kind.TELL))
"""Kinds of which a client may have several under way."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation; the numbers are sectors, bytes and microseconds.

    ``after`` counts back to the operation whose end it waited for (0: nothing). ``think_us``: from
    there to its start. ``pace_us``: before each further request of a SINGLE run.
    """

    kind: Kind
    device: int = 0
    lba: int = 0
    count: int = 0
    after: int = 1
    think_us: int = 0
    pace_us: int = 0
    blob: bytes = b""


@dataclass(frozen=True)
class Trace:
    """``about``: where it is from. ``boot_sectors``, ``root_sectors``: how big the devices were."""

    boot_sectors: int
    root_sectors: int
    ops: tuple[Op, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, op in enumerate(self.ops):
            if op.after > number and (op.after, number) != (1, 0):
                raise UsageError(f"operation {number} of the trace comes after none of it")
            if op.count < 0 or op.lba < 0 or op.think_us < 0 or op.pace_us < 0:
                raise UsageError(f"operation {number} of the trace has a number below 0")
            size = {0: self.boot_sectors, 1: self.root_sectors}.get(op.device)
            if (
                op.kind in (Kind.SINGLE, Kind.READ)
                and size is not None
                and op.lba + op.count > size
            ):
                raise UsageError(f"operation {number} of the trace reads beyond its device")
        if not self.ops or self.ops[-1].kind is not Kind.RUNNING:
            raise UsageError("the trace does not end with a client that runs")

    def total(self, *kinds: Kind) -> int:
        """Sectors (or bytes, of files) that one client moves."""
        return sum(op.count for op in self.ops if op.kind in kinds)

    def frames(self, sectors: int = 2) -> int:
        """How many AoE reads and writes one client sends, of at most ``sectors`` in the kernel."""
        return sum(
            -(-op.count // (2 if op.kind is Kind.SINGLE else sectors))
            for op in self.ops
            if op.kind in ASIDE or op.kind is Kind.SINGLE
        )

    def thought(self) -> float:
        """Seconds that the recorded client computed, one thing after the other."""
        singles = [op for op in self.ops if op.kind is Kind.SINGLE]
        single = sum(op.pace_us * max(0, op.count // 2 - 1) for op in singles)
        ends = [0] * len(self.ops)
        for number, op in enumerate(self.ops):
            ends[number] = op.think_us + (ends[number - op.after] if number else 0)
        return (single + ends[-1]) / 1e6


def encode(trace: Trace) -> bytes:
    """The trace as the bytes of a file."""
    rows = [
        [
            int(op.kind),
            op.device,
            op.lba,
            op.count,
            op.after,
            op.think_us,
            op.pace_us,
            op.blob.hex(),
        ]
        for op in trace.ops
    ]
    said = {"boot_sectors": trace.boot_sectors, "root_sectors": trace.root_sectors,
            "about": trace.about, "ops": rows}  # fmt: skip
    return MAGIC + zlib.compress(json.dumps(said, separators=(",", ":")).encode(), 9)


def decode(data: bytes) -> Trace:
    """The trace in the bytes of a file; UsageError if they are none."""
    if not data.startswith(MAGIC):
        raise UsageError("is no trace of a boot: make one with python -m bench record")
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data[len(MAGIC) :], _MOST)
        if not unpacker.eof:
            raise ValueError("cut off")
        said = json.loads(text)
        ops = [
            Op(Kind(kind), device, lba, count, after, think, pace, bytes.fromhex(blob))
            for kind, device, lba, count, after, think, pace, blob in said["ops"]
        ]
        return Trace(said["boot_sectors"], said["root_sectors"], tuple(ops), said["about"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise UsageError(f"is a damaged trace: {error}") from None


def load(path: Path) -> Trace:
    """The trace in a file; UsageError names the file."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def program(trace: Trace) -> bytes:
    """What storm.c maps: a head, an array of operations, their blobs."""
    rows, blobs = [], bytearray()
    for number, op in enumerate(trace.ops):
        after = number - op.after + 1 if number and op.after else 0
        rows.append(
            _OP.pack(op.kind, op.device, min(len(op.blob), 65535), op.count, op.lba, after,
                     min(op.think_us, 2**32 - 1), min(op.pace_us, 2**32 - 1), len(blobs))
        )  # fmt: skip
        blobs += op.blob
    return _PROGRAM + struct.pack("<II", len(rows), len(blobs)) + b"".join(rows) + bytes(blobs)


def by_file(trace: Trace, name: str) -> Trace:
    """The same boot for a server without AoE: a TFTP file instead of what iPXE read of its disk."""
    size = 512 * trace.total(Kind.SINGLE)
    ops: list[Op] = []
    for op in trace.ops:
        if op.kind is Kind.SINGLE and op.device == 0:
            if any(done.kind is Kind.TFTP and done.blob == name.encode() for done in ops):
                op = Op(Kind.TELL, device=4)  # keeps the counting; told to nobody
            else:
                op = Op(Kind.TFTP, count=size, lba=1432, blob=name.encode())
        elif op.kind in (Kind.FIND, Kind.TELL):
            op = replace(op, kind=Kind.TELL, device=4)
        ops.append(op)
    return replace(trace, ops=tuple(ops))


def shorten(trace: Trace, share: float) -> Trace:
    """A boot that reads less: ``share`` of iPXE's runs and files, and of the kernel's reads."""
    kept: list[Op] = []
    places: dict[int, int] = {}  # number before -> number now
    for number, op in enumerate(trace.ops):
        if op.kind is Kind.SINGLE:
            op = replace(op, count=max(2, int(op.count * share) // 2 * 2))
        elif op.kind is Kind.HTTP and op.blob.startswith(IMAGE_FILES):
            op = replace(op, lba=int(op.lba * share), count=int(op.count * share))
        elif op.kind is Kind.READ and number * share % 1 >= share:
            continue
        places[number] = len(kept)
        waits = number - op.after if op.after else -1
        while waits >= 0 and waits not in places:
            waits -= 1
        back = len(kept) - places[waits] if waits >= 0 else int(not kept)
        kept.append(replace(op, after=back))
    return replace(trace, ops=tuple(kept))


def sectors_written(ops: Iterable[Op], device: int = 3) -> set[int]:
    """Which sectors of a device a client has written in the end."""
    return {
        op.lba + sector
        for op in ops
        if op.kind is Kind.WRITE and op.device == device
        for sector in range(op.count)
    }
