"""TFTP packets: bytes to dataclasses and back (RFC 1350, 2347). Pure.

``decode`` parses any bytes or raises ``TftpError``, and nothing else.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from pxed.errors import PxedError


class Code(IntEnum):
    """Error codes: RFC 1350 section 5, RFC 2347 for 8."""

    UNDEFINED = 0
    NOT_FOUND = 1
    ACCESS = 2
    DISK_FULL = 3
    ILLEGAL = 4
    UNKNOWN_TID = 5
    EXISTS = 6
    NO_USER = 7
    OPTIONS = 8


class Op(IntEnum):
    """Opcodes: RFC 1350 section 5, RFC 2347 for 6."""

    RRQ = 1
    WRQ = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OACK = 6


class TftpError(PxedError):
    """A packet or a request that cannot be served; ``code`` is what the client is told."""

    def __init__(self, text: str, code: int = Code.ILLEGAL) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """RRQ or WRQ; option names in lower case, in the client's order."""

    file: str
    mode: str = "octet"
    options: Mapping[str, str] = field(default_factory=dict)
    write: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """DATA; ``block`` as on the wire."""

    block: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """ACK; ``block`` as on the wire."""

    block: int


@dataclass(frozen=True, slots=True)
class Error:
    """ERROR."""

    code: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Oack:
    """OACK: the options that the server agrees to (RFC 2347)."""

    options: Mapping[str, str]


Packet = Request | Data | Ack | Error | Oack
_TWO = struct.Struct("!HH")


def decode(data: bytes) -> Packet:
    """The packet in ``data``; TftpError if it is none. Trailing bytes after an ACK are ignored."""
    if data[:2] == b"\x00\x06":
        return Oack(_options(_strings(data[2:])))
    if len(data) < 4:
        raise TftpError(f"a TFTP packet has 4 bytes or more, not {len(data)}")
    op, number = _TWO.unpack_from(data)
    match op:
        case Op.RRQ | Op.WRQ:
            return _request(data[2:], write=op == Op.WRQ)
        case Op.DATA:
            return Data(number, data[4:])
        case Op.ACK:
            return Ack(number)
        case Op.ERROR:
            return Error(number, _text(data[4:].split(b"\0", 1)[0]))
    raise TftpError(f"opcode {op} is not TFTP")


def _strings(body: bytes) -> list[str]:
    """NUL-terminated strings; what follows the last NUL is dropped (old ROMs pad with rubbish)."""
    return [_text(part) for part in body.split(b"\0")[:-1]]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _request(body: bytes, *, write: bool) -> Request:
    parts = _strings(body)
    if len(parts) < 2 or not parts[0]:
        raise TftpError("a request needs a file name and a mode")
    return Request(parts[0], parts[1].lower(), _options(parts[2:]), write)


def _options(parts: list[str]) -> dict[str, str]:
    """Pairs of name and value; the first of a repeated name wins, an odd one out is dropped."""
    options: dict[str, str] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=False):
        if name:
            options.setdefault(name.lower(), value)
    return options


def encode(packet: Packet) -> bytes:
    """The bytes of ``packet``; TftpError if a string holds a NUL."""
    match packet:
        case Request(file, mode, options, write):
            op = Op.WRQ if write else Op.RRQ
            return op.to_bytes(2, "big") + _pack((file, mode, *_flat(options)))
        case Data(block, payload):
            return _TWO.pack(Op.DATA, block & 0xFFFF) + payload
        case Ack(block):
            return _TWO.pack(Op.ACK, block & 0xFFFF)
        case Error(code, text):
            return _TWO.pack(Op.ERROR, code) + _pack((text,))
        case Oack(options):
            return Op.OACK.to_bytes(2, "big") + _pack(tuple(_flat(options)))


def _flat(options: Mapping[str, str]) -> list[str]:
    return [text for pair in options.items() for text in pair]


def _pack(texts: tuple[str, ...]) -> bytes:
    if any("\0" in text for text in texts):
        raise TftpError("a string in a TFTP packet cannot hold a NUL")
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in texts)
