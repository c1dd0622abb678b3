"""Kernel, initramfs and command line as one EFI program, for any processor.

systemd's EFI stub with more sections (systemd-stub(7)). objcopy knows the programs of one processor
family; the format is the same for all: PE32+, Microsoft's "PE Format".
"""

import struct
from collections.abc import Mapping

from pxed.errors import UsageError

_READ_DATA = 0x40000040  # IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
_FILLING = b"\0" + bytes.fromhex("1f2003d5")  # and arm64's NOP, in Debian's stub for it
_SECTION = struct.Struct("<8sIIIIIIHHI")


def unify(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """The program ``stub`` with further sections, in their order; UsageError if it is none."""
    if len(stub) < 0x40:
        raise UsageError("the EFI stub is no program")
    (header,) = struct.unpack_from("<I", stub, 0x3C)
    optional = header + 24
    if stub[header : header + 4] != b"PE\0\0" or stub[optional : optional + 2] != b"\x0b\x02":
        raise UsageError("the EFI stub is no 64-bit EFI program")
    (count,) = struct.unpack_from("<H", stub, header + 6)
    (size,) = struct.unpack_from("<H", stub, header + 20)
    table = optional + size
    align, file_align = struct.unpack_from("<II", stub, optional + 32)
    (headers,) = struct.unpack_from("<I", stub, optional + 60)
    last = table + _SECTION.size * (count + len(sections))
    if last > headers or stub[table + _SECTION.size * count : last].strip(_FILLING):
        raise UsageError("the EFI stub has no room for more sections")
    end = 0
    for index in range(count):
        its_size, address = struct.unpack_from("<II", stub, table + _SECTION.size * index + 8)
        end = max(end, address + its_size)
    made = bytearray(stub)
    at = table + _SECTION.size * count
    for name, data in sections.items():
        address = -(-end // align) * align
        made += bytes(-len(made) % file_align)
        room = -(-len(data) // file_align) * file_align
        _SECTION.pack_into(
            made, at, name.encode(), len(data), address, room, len(made), 0, 0, 0, 0, _READ_DATA
        )
        made += data + bytes(room - len(data))
        at += _SECTION.size
        end = address + len(data)
    struct.pack_into("<H", made, header + 6, count + len(sections))
    struct.pack_into("<I", made, optional + 56, -(-end // align) * align)  # SizeOfImage
    return bytes(made)
