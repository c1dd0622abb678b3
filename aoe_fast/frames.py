"""AoE as an initiator sees it: requests to bytes, replies to dataclasses, pacing. No I/O.

Sources: AoE revision 11 (header, config and ATA sections), ATA/ATAPI-6 (IDENTIFY DEVICE).
"""

import enum
import struct
from dataclasses import dataclass

ETHERTYPE = 0x88A2
SECTOR = 512
BROADCAST = b"\xff" * 6
ANY_SHELF = 0xFFFF
ANY_SLOT = 0xFF
SHORTEST = 60
"""Ethernet's shortest frame without its checksum; veth does not pad for us."""

_VERSION = 1
_RESPONSE = 0x08
_ERROR = 0x04

_HEADER = struct.Struct("!6s6sHBBHBB4s")
_ATA = struct.Struct("!BBBB6s2x")
_CONFIG = struct.Struct("!HHBBH")

AFLAG_LBA48 = 0x40
AFLAG_WRITE = 0x01


class Command(enum.IntEnum):
    """Command classes (AoE section 2)."""

    ATA = 0
    CONFIG = 1
    MASK = 2
    RESERVE = 3


class ConfigCommand(enum.IntEnum):
    """Subcommands of the config class (AoE section 3.2)."""

    READ = 0
    TEST = 1
    PREFIX = 2
    SET = 3
    FORCE = 4


class Ata(enum.IntEnum):
    """ATA opcodes (ATA/ATAPI-6 section 8)."""

    READ = 0x20
    READ_EXT = 0x24
    WRITE = 0x30
    WRITE_EXT = 0x34
    CHECK_POWER = 0xE5
    FLUSH = 0xE7
    FLUSH_EXT = 0xEA
    IDENTIFY = 0xEC


class InitiatorError(Exception):
    """Whatever an initiator raises on purpose; its text is one line."""


class InterfaceError(InitiatorError):
    """This machine's side: no such interface, no privilege, link down."""


class NoAnswer(InitiatorError):
    """The target stayed silent through every retry."""


class BadReply(InitiatorError):
    """A target answered with something that its own protocol rules out."""


class AtaError(InitiatorError):
    """The device refused or failed one command; ``status`` and ``error`` are its registers."""

    def __init__(self, what: str, status: int, error: int) -> None:
        words = [word for bit, word in _STATUS_WORDS if status & bit]
        words += [word for bit, word in _ERROR_WORDS if error & bit]
        self.status = status
        self.error = error
        super().__init__(
            f"{what}: {', '.join(words) or 'failed'} (status {status:#04x}, error {error:#04x})"
        )


class TargetError(InitiatorError):
    """The target set the E flag; ``code`` is the AoE error."""

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        super().__init__(f"{what}: {_AOE_ERRORS.get(code, 'unknown error')} (AoE error {code})")


_STATUS_WORDS = [(0x80, "device busy"), (0x20, "device fault"), (0x08, "data request left over")]
_ERROR_WORDS = [
    (0x40, "media error"),
    (0x10, "sector out of range"),
    (0x04, "command aborted"),
    (0x80, "interface checksum error"),
]
# AoE section 2.4.
_AOE_ERRORS = {
    1: "unrecognized command class",
    2: "bad argument",
    3: "device unavailable",
    4: "a config string is already set",
    5: "unsupported AoE version",
    6: "reserved by another client",
}
STATUS_BAD = 0xA9
"""BSY, DF, DRQ and ERR: what Linux checks in a reply's status."""


@dataclass(frozen=True)
class Reply:
    """One AoE reply; ``body`` is what follows the tag, with any padding."""

    dst: bytes
    src: bytes
    shelf: int
    slot: int
    command: int
    tag: int
    failed: bool
    error: int
    body: bytes


@dataclass(frozen=True)
class Config:
    """The body of a config reply (AoE section 3.2)."""

    bufcnt: int
    firmware: int
    scnt: int
    command: int
    string: bytes


@dataclass(frozen=True)
class AtaReply:
    """The registers and the data of an ATA reply; ``data`` may end in padding."""

    status: int
    error: int
    count: int
    lba: int
    data: bytes

    @property
    def bad(self) -> bool:
        return bool(self.status & STATUS_BAD)


@dataclass(frozen=True)
class Device:
    """One answer to a discovery: an export at a target's MAC address."""

    shelf: int
    slot: int
    mac: bytes
    bufcnt: int
    scnt: int
    firmware: int
    config: bytes

    @property
    def address(self) -> str:
        return f"{self.shelf}.{self.slot}"


@dataclass(frozen=True)
class Identity:
    """What IDENTIFY DEVICE says; ``raw`` is all 512 bytes."""

    sectors: int
    serial: str
    model: str
    firmware: str
    lba48: bool
    raw: bytes


def build(
    dst: bytes, src: bytes, shelf: int, slot: int, command: int, tag: int, body: bytes
) -> bytes:
    """A request frame, padded to Ethernet's shortest."""
    head = _HEADER.pack(
        dst, src, ETHERTYPE, _VERSION << 4, 0, shelf, slot, command, tag.to_bytes(4, "big")
    )
    return (head + body).ljust(SHORTEST, b"\0")


def ata_body(
    opcode: int,
    *,
    lba: int = 0,
    count: int = 0,
    feature: int = 0,
    aflags: int = 0,
    data: bytes = b"",
) -> bytes:
    """The body of an ATA request. Without AFLAG_LBA48 lba3 carries LBA mode, as Linux sends it."""
    address = bytearray(lba.to_bytes(6, "little"))
    if not aflags & AFLAG_LBA48:
        address[3] = (address[3] & 0x0F) | 0xE0
    return _ATA.pack(aflags, feature, count, opcode, bytes(address)) + data


def transfer_body(lba: int, count: int, data: bytes | None, *, lba48: bool) -> bytes:
    """The body of a read (``data`` None) or of a write of ``count`` sectors."""
    if data is None:
        opcode, aflags = (Ata.READ_EXT, AFLAG_LBA48) if lba48 else (Ata.READ, 0)
        return ata_body(opcode, lba=lba, count=count, aflags=aflags)
    opcode, aflags = (Ata.WRITE_EXT, AFLAG_LBA48) if lba48 else (Ata.WRITE, 0)
    return ata_body(opcode, lba=lba, count=count, aflags=aflags | AFLAG_WRITE, data=data)


def config_body(command: int = ConfigCommand.READ, string: bytes = b"") -> bytes:
    """The body of a config request."""
    return _CONFIG.pack(0, 0, 0, _VERSION << 4 | command, len(string)) + string


def parse(frame: bytes) -> Reply | None:
    """The reply in ``frame``; None if it is anything else (a request, a runt, another protocol)."""
    if len(frame) < _HEADER.size:
        return None
    dst, src, kind, version, error, shelf, slot, command, tag = _HEADER.unpack_from(frame)
    if kind != ETHERTYPE or version >> 4 != _VERSION or not version & _RESPONSE:
        return None
    return Reply(
        dst=dst,
        src=src,
        shelf=shelf,
        slot=slot,
        command=command,
        tag=int.from_bytes(tag, "big"),
        failed=bool(version & _ERROR),
        error=error,
        body=frame[_HEADER.size :],
    )


def parse_config(body: bytes) -> Config:
    """The config reply in ``body``; BadReply if it is cut short."""
    if len(body) < _CONFIG.size:
        raise BadReply(f"a config reply of {len(body)} bytes is cut short")
    bufcnt, firmware, scnt, command, size = _CONFIG.unpack_from(body)
    string = body[_CONFIG.size : _CONFIG.size + size]
    if len(string) < size:
        raise BadReply(f"a config reply promises {size} bytes and carries {len(string)}")
    return Config(bufcnt, firmware, scnt, command & 0x0F, string)


def parse_ata(body: bytes) -> AtaReply:
    """The ATA reply in ``body``; BadReply if it is cut short."""
    if len(body) < _ATA.size:
        raise BadReply(f"an ATA reply of {len(body)} bytes is cut short")
    _, error, count, status, lba = _ATA.unpack_from(body)
    return AtaReply(status, error, count, int.from_bytes(lba, "little"), body[_ATA.size :])


def parse_identity(data: bytes) -> Identity:
    """The 512 bytes of IDENTIFY DEVICE (ATA/ATAPI-6 section 8.15); BadReply if cut short.

    The size is taken as Linux takes it: words 100-103 if words 83 and 86 promise 48 bits, else
    60-61.
    """
    if len(data) < SECTOR:
        raise BadReply(f"IDENTIFY gave {len(data)} bytes, not {SECTOR}")
    data = data[:SECTOR]
    words = struct.unpack("<256H", data)
    lba48 = bool(words[83] & words[86] & 1 << 10)
    first, last = (100, 104) if lba48 else (60, 62)

    def text(start: int, end: int) -> str:
        raw = struct.pack(f">{end - start}H", *words[start:end])
        return raw.replace(b"\0", b" ").decode("ascii", "replace").strip()

    return Identity(
        sectors=int.from_bytes(data[2 * first : 2 * last], "little"),
        serial=text(10, 20),
        model=text(27, 47),
        firmware=text(23, 27),
        lba48=lba48,
        raw=data,
    )


def sectors_that_fit(mtu: int, scnt: int) -> int:
    """Sectors that fit one frame: the interface's share and the target's; 0 if not even one."""
    return min(max(mtu - 36, 0) // SECTOR, scnt or 2, 255)


class Pace:
    """How many requests may be in flight, and how long to wait for one. Times in seconds.

    The plain pace keeps the window full and its RTO near the measured round trip.
    """

    def __init__(self, bufcnt: int, timeout: float) -> None:
        self.window = max(1, bufcnt)
        self.rto = timeout
        self._timeout = timeout
        self._average = 0.0
        self._deviation = 0.0

    def answered(self, rtt: float) -> None:
        """One first copy was answered after ``rtt``."""
        if not self._average:
            self._average, self._deviation = rtt, rtt / 2
        else:
            self._deviation += (abs(rtt - self._average) - self._deviation) / 4
            self._average += (rtt - self._average) / 8
        self.rto = min(max(self._average + 4 * self._deviation, 0.05), self._timeout)

    def lost(self) -> None:
        """A request timed out."""


class LinuxPace(Pace):
    """The Linux driver's arithmetic (drivers/block/aoe): half the buffers at first, a slow RTO.

    RTO = 2 * average + 8 * deviation. The average starts at 250 ms with gain 1/256; the deviation
    starts at 2 s with gain 1/8, so the first lost frame costs 16.5 s.
    """

    def __init__(self, bufcnt: int, timeout: float) -> None:
        super().__init__(bufcnt, timeout)
        self._limit = max(1, bufcnt)
        self.window = max(1, bufcnt // 2)
        self._threshold = self._limit
        self._credit = self.window
        self._average = 0.25
        self._deviation = 2.0
        self.rto = 2 * self._average + 8 * self._deviation

    def answered(self, rtt: float) -> None:
        self._deviation += (abs(rtt - self._average) - self._deviation) / 8
        self._average += (rtt - self._average) / 256
        self.rto = 2 * self._average + 8 * self._deviation
        self._credit -= 1
        if self.window < self._limit and (self.window < self._threshold or self._credit <= 0):
            self.window += 1
            self._credit = self.window

    def lost(self) -> None:
        self._threshold = max(1, self.window // 2)
        self.window = 1
        self._credit = 1


def device_of(reply: Reply) -> Device:
    """The export that a reply to a config query tells of; BadReply."""
    config = parse_config(reply.body)
    return Device(
        reply.shelf,
        reply.slot,
        reply.src,
        config.bufcnt,
        config.scnt,
        config.firmware,
        config.string,
    )


def opcode_name(opcode: int) -> str:
    """What people call an ATA command."""
    try:
        return Ata(opcode).name.lower().replace("_", " ")
    except ValueError:
        return f"ATA command {opcode:#04x}"
