"""An AoE target in plain Python: slow, obvious, written from the rules and not from the core.

The rules are those of AoE revision 11, corrected by what initiators do; docs/protocol lists them.
The differential test feeds the same frames to this and to ``aoe_fast.Target``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SECTOR = 512
BROADCAST = b"\xff" * 6
MOST_MACS = 64


@dataclass
class ReferenceExport:
    """A disk in memory, with what clients may change over the wire."""

    disk: bytearray
    writable: bool = False
    serial: str = ""
    config: bytes = b""
    allowed: list[bytes] = field(default_factory=list)
    holders: list[bytes] = field(default_factory=list)

    @property
    def sectors(self) -> int:
        return len(self.disk) // SECTOR


class AoeFault(Exception):
    """The reply carries the E flag and this error code."""


class AtaFault(Exception):
    """The reply carries ATA status 0x41 and this error register."""


ABRT = 0x04
IDNF = 0x10

View = dict[tuple[int, int], ReferenceExport]


class ReferenceTarget:
    """The protocol: ``handle`` one frame, get the replies."""

    def __init__(
        self, *, bufcnt: int = 64, wire_config: bool = False, wire_reserve: bool = False
    ) -> None:
        self.bufcnt = bufcnt
        self.wire_config = wire_config
        self.wire_reserve = wire_reserve
        self.views: dict[bytes | None, View] = {}

    def set_view(
        self, mac: bytes | None, bindings: Mapping[tuple[int, int], ReferenceExport]
    ) -> None:
        self.views[mac] = dict(bindings)

    def drop_view(self, mac: bytes | None) -> None:
        self.views.pop(mac, None)

    def handle(self, frame: bytes, own_mac: bytes, mtu: int = 1500) -> list[bytes]:
        """Every matching export's reply; an empty list is silence."""
        if len(frame) < 24:
            return []
        dst, src, ethertype = frame[0:6], frame[6:12], frame[12:14]
        version, flags = frame[14] >> 4, frame[14] & 0x0F
        shelf, slot, command = int.from_bytes(frame[16:18], "big"), frame[18], frame[19]
        body = frame[24:]
        if ethertype != b"\x88\xa2" or dst not in (own_mac, BROADCAST):
            return []
        if flags & 0x8 or src[0] & 1:
            return []
        if len(body) < {0: 12, 1: 8, 2: 4, 3: 2}.get(command, 0):
            return []
        view = self.views.get(src, self.views.get(None, {}))
        replies = []
        for (its_shelf, its_slot), export in view.items():
            if shelf not in (0xFFFF, its_shelf) or slot not in (0xFF, its_slot):
                continue
            if export.allowed and src not in export.allowed:
                continue
            error = 0
            try:
                if version != 1:
                    raise AoeFault(5)
                answer = self._answer(command, export, src, body, mtu)
            except AoeFault as fault:
                error = int(fault.args[0])
                answer = fault.args[1] if len(fault.args) > 1 else b""
            if answer is None:
                continue
            head = src + own_mac + b"\x88\xa2"
            head += bytes([0x1C if error else 0x18, error])
            head += its_shelf.to_bytes(2, "big") + bytes([its_slot, command]) + frame[20:24]
            replies.append((head + answer).ljust(60, b"\0"))
        return replies

    def _answer(
        self, command: int, export: ReferenceExport, src: bytes, body: bytes, mtu: int
    ) -> bytes | None:
        """What follows the tag; None is silence."""
        if command == 0:
            return self._ata(export, src, body, mtu)
        if command == 1:
            return self._config(export, body, mtu)
        if command == 2:
            return self._mask(export, body)
        if command == 3:
            return self._reserve(export, src, body)
        raise AoeFault(1)

    def _ata(self, export: ReferenceExport, src: bytes, body: bytes, mtu: int) -> bytes:
        aflags, _, count, opcode = body[0:4]
        if export.holders and src not in export.holders and opcode != 0xEC:
            raise AoeFault(6)
        lba = int.from_bytes(body[4:10], "little")
        extended = opcode in (0x24, 0x34)
        if not aflags & 0x40 and not extended:
            lba &= 0x0FFFFFFF
        try:
            if extended and not aflags & 0x40 and lba >> 28 == 0xE:
                # 28 bits below the old task file's device bits, or 48 bits: only one may fit.
                if lba < export.sectors:
                    raise AtaFault(ABRT)
                lba &= 0x0FFFFFFF
            count_out, data = self._ata_command(export, opcode, lba, count, body[12:], mtu)
            error, status = 0, 0x40
        except AtaFault as fault:
            count_out, data = count, b""
            error, status = fault.args[0], 0x41
        return bytes([aflags, error, count_out, status]) + body[4:10] + bytes(2) + data

    def _ata_command(
        self,
        export: ReferenceExport,
        opcode: int,
        lba: int,
        count: int,
        payload: bytes,
        mtu: int,
    ) -> tuple[int, bytes]:
        """(sector count register, data) of a success."""
        start, end = lba * SECTOR, (lba + count) * SECTOR
        if opcode in (0x20, 0x24, 0x30, 0x34):
            write = opcode in (0x30, 0x34)
            if count == 0 or count > most_sectors(mtu):
                raise AtaFault(ABRT)
            if write and (not export.writable or len(payload) < count * SECTOR):
                raise AtaFault(ABRT)
            if lba + count > export.sectors:
                raise AtaFault(IDNF)
            if not write:
                return count, bytes(export.disk[start:end])
            export.disk[start:end] = payload[: count * SECTOR]
            return count, b""
        if opcode == 0xEC:
            return count, identify(export)
        if opcode in (0xE7, 0xEA):
            return count, b""
        if opcode == 0xE5:
            return 0xFF, b""
        raise AtaFault(ABRT)

    def _config(self, export: ReferenceExport, body: bytes, mtu: int) -> bytes | None:
        command = body[5] & 0x0F
        length = int.from_bytes(body[6:8], "big")
        if command > 4:
            raise AoeFault(2)
        if command != 0 and (length > 1024 or length > len(body) - 8):
            raise AoeFault(2)
        string = body[8 : 8 + length]
        error = 0
        if command == 1 and string != export.config:
            return None
        if command == 2 and not export.config.startswith(string):
            return None
        if command in (3, 4) and string != export.config:
            if not self.wire_config or (command == 3 and export.config):
                error = 4
            else:
                export.config = string
        answer = self.bufcnt.to_bytes(2, "big") + b"\0\1"
        answer += bytes([most_sectors(mtu), 0x10 | command])
        answer += len(export.config).to_bytes(2, "big") + export.config
        if error:
            raise AoeFault(error, answer)
        return answer

    def _mask(self, export: ReferenceExport, body: bytes) -> bytes:
        command, count = body[1], body[3]
        if command > 1:
            raise AoeFault(2)
        merror = 0
        if command == 1:
            if len(body) - 4 < 8 * count:
                raise AoeFault(2)
            if not self.wire_reserve:
                merror = 1
                count = 0
            for number in range(count):
                directive = body[4 + 8 * number : 12 + 8 * number]
                merror = edit(export.allowed, directive[1], directive[2:])
                if merror:
                    break
        listing = b"".join(b"\0\0" + mac for mac in export.allowed)
        return bytes([0, command, merror, len(export.allowed)]) + listing

    def _reserve(self, export: ReferenceExport, src: bytes, body: bytes) -> bytes:
        command, count = body[0], body[1]
        if command > 2:
            raise AoeFault(2)
        if command != 0:
            if count > MOST_MACS or len(body) - 2 < 6 * count:
                raise AoeFault(2)
            if not self.wire_reserve:
                raise AoeFault(6, bytes([command, 0]))
            if command == 1 and export.holders and src not in export.holders:
                raise AoeFault(6, bytes([command, 0]))
            export.holders = [body[2 + 6 * i : 8 + 6 * i] for i in range(count)]
        return bytes([command, len(export.holders)]) + b"".join(export.holders)


def edit(allowed: list[bytes], directive: int, mac: bytes) -> int:
    """Apply one mask directive; 0 or the merror."""
    if directive == 0:
        return 0
    if directive == 1:
        if mac not in allowed:
            if len(allowed) == MOST_MACS:
                return 3
            allowed.append(mac)
        return 0
    if directive == 2:
        if mac in allowed:
            allowed.remove(mac)
        return 0
    return 2


def most_sectors(mtu: int) -> int:
    """16 where it fits, else 8 where 4 KiB fits, else what fits (Linux: (MTU - 36) / 512)."""
    fit = (mtu - 36) // SECTOR
    return 16 if fit >= 16 else 8 if fit >= 8 else fit


def identify(export: ReferenceExport) -> bytes:
    """IDENTIFY DEVICE, ATA/ATAPI-6 section 8.15."""
    words = [0] * 256
    sectors = export.sectors
    small = min(sectors, 0x0FFFFFFF)
    cylinders = min(small // (16 * 63), 16383)
    words[0] = 0x0040
    words[1] = words[54] = cylinders
    words[3] = words[55] = 16
    words[6] = words[56] = 63
    words[47] = 0x8000
    words[49] = 0x0200
    words[53] = 0x0001
    chs = cylinders * 16 * 63
    words[57], words[58] = chs & 0xFFFF, chs >> 16
    words[60], words[61] = small & 0xFFFF, small >> 16
    words[80] = 0x007E
    words[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10
    words[84] = words[87] = 0x4000
    words[86] = 1 << 13 | 1 << 12 | 1 << 10
    for number in range(4):
        words[100 + number] = sectors >> 16 * number & 0xFFFF
    for first, text, size in (
        (10, export.serial, 20),
        (23, "0.1.0", 8),
        (27, "aoe_fast", 40),
    ):
        padded = text.ljust(size).encode("ascii")
        for number in range(size // 2):
            words[first + number] = padded[2 * number] << 8 | padded[2 * number + 1]
    return b"".join(word.to_bytes(2, "little") for word in words)
