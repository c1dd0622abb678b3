"""AoE frames for tests, made with struct alone: independent of the code under test."""

import struct
from dataclasses import dataclass

SERVER = bytes.fromhex("020000000001")
CLIENT = bytes.fromhex("0200000000c1")
STRANGER = bytes.fromhex("0200000000ee")
BROADCAST = b"\xff" * 6

READ, READ_EXT, WRITE, WRITE_EXT = 0x20, 0x24, 0x30, 0x34
IDENTIFY, FLUSH, FLUSH_EXT, CHECK_POWER, SMART = 0xEC, 0xE7, 0xEA, 0xE5, 0xB0
ABRT, IDNF, UNC = 0x04, 0x10, 0x40


def frame(
    command: int,
    body: bytes = b"",
    *,
    shelf: int = 16,
    slot: int = 3,
    src: bytes = CLIENT,
    dst: bytes = SERVER,
    flags: int = 0x10,
    tag: int = 0x01020304,
) -> bytes:
    """One request of class ``command``."""
    return dst + src + struct.pack(">HBBHBBI", 0x88A2, flags, 0, shelf, slot, command, tag) + body


def ata_body(
    opcode: int, lba: int = 0, count: int = 0, *, aflags: int = 0x40, data: bytes = b""
) -> bytes:
    address = lba.to_bytes(6, "little")
    return struct.pack(">BBBB", aflags, 0, count, opcode) + address + b"\0\0" + data


def ata(
    opcode: int,
    lba: int = 0,
    count: int = 0,
    *,
    aflags: int = 0x40,
    data: bytes = b"",
    shelf: int = 16,
    slot: int = 3,
    src: bytes = CLIENT,
    dst: bytes = SERVER,
    tag: int = 0x01020304,
) -> bytes:
    body = ata_body(opcode, lba, count, aflags=aflags, data=data)
    return frame(0, body, shelf=shelf, slot=slot, src=src, dst=dst, tag=tag)


def config(subcommand: int, text: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    return struct.pack(">HHBBH", 0, 0, 0, subcommand, size) + text


def mask(command: int, *directives: tuple[int, bytes]) -> bytes:
    body = struct.pack(">BBBB", 0, command, 0, len(directives))
    return body + b"".join(struct.pack(">BB", 0, what) + mac for what, mac in directives)


def reserve(command: int, *macs: bytes) -> bytes:
    return struct.pack(">BB", command, len(macs)) + b"".join(macs)


@dataclass
class Reply:
    """A reply taken apart; ``body`` is what follows the 24 bytes of the AoE header."""

    raw: bytes

    @property
    def dst(self) -> bytes:
        return self.raw[0:6]

    @property
    def src(self) -> bytes:
        return self.raw[6:12]

    @property
    def flags(self) -> int:
        return self.raw[14]

    @property
    def error(self) -> int:
        return self.raw[15] if self.flags & 4 else 0

    @property
    def address(self) -> tuple[int, int]:
        return int.from_bytes(self.raw[16:18], "big"), self.raw[18]

    @property
    def tag(self) -> int:
        return int.from_bytes(self.raw[20:24], "big")

    @property
    def body(self) -> bytes:
        return self.raw[24:]

    # Class 0.
    @property
    def status(self) -> int:
        return self.raw[27]

    @property
    def ata_error(self) -> int:
        return self.raw[25]

    @property
    def data(self) -> bytes:
        return self.raw[36:]

    # Class 1.
    @property
    def text(self) -> bytes:
        return self.raw[32 : 32 + int.from_bytes(self.raw[30:32], "big")]
