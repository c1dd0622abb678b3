"""One EFI program out of several parts: its sections are where the format says."""

import struct
from pathlib import Path

import pytest

from pxed.client.bootdisk import unified_image
from pxed.client.unified import unify
from pxed.errors import UsageError

_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
PARTS = {".cmdline": b"quiet", ".initrd": b"i" * 5000, ".linux": b"MZ" + bytes(9000)}


def program(room: int = 0x400) -> bytes:
    """A PE32+ program with two sections, as an EFI stub is."""
    header = 0x40
    raw = bytearray(b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", header))
    raw += b"PE\0\0" + struct.pack("<HHIIIHH", 0xAA64, 2, 0, 0, 0, 112, 0x206)
    optional = bytearray(112)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 32, 4096, 512)
    struct.pack_into("<II", optional, 56, 0x3000, room)
    raw += optional
    for name, address in ((b".text", 0x1000), (b".data", 0x2000)):
        raw += struct.pack("<8sIIIIIIHHI", name, 0x200, address, 0x200, room, 0, 0, 0, 0, 0)
    return bytes(raw).ljust(room, b"\0") + bytes(0x400)


def sections(raw: bytes) -> dict[str, tuple[int, bytes]]:
    (header,) = struct.unpack_from("<I", raw, 0x3C)
    count, size = (
        struct.unpack_from("<H", raw, header + 6)[0],
        struct.unpack_from("<H", raw, header + 20)[0],
    )
    found = {}
    for n in range(count):
        name, length, address, _, at, *_ = struct.unpack_from(
            "<8sIIIIIIHHI", raw, header + 24 + size + 40 * n
        )
        found[name.rstrip(b"\0").decode()] = address, raw[at : at + length]
    return found


def test_every_part_is_a_section_that_lies_apart() -> None:
    made = unify(program(), PARTS)
    found = sections(made)
    assert {name: data for name, (_, data) in found.items() if name in PARTS} == PARTS
    last = 0
    for address, data in found.values():
        assert address % 4096 == 0
        assert address >= last
        last = address + len(data)
    (header,) = struct.unpack_from("<I", made, 0x3C)
    (whole,) = struct.unpack_from("<I", made, header + 24 + 56)
    assert whole % 4096 == 0
    assert whole >= last


def test_room_that_is_filled_with_instructions_is_room_too() -> None:
    stub = bytearray(program())
    end = 0x40 + 24 + 112 + 80
    stub[end:0x400] = (bytes.fromhex("1f2003d5") * 256)[: 0x400 - end]
    assert set(PARTS) <= sections(unify(bytes(stub), PARTS)).keys()
    stub[end + 8] = 1
    with pytest.raises(UsageError, match="no room"):
        unify(bytes(stub), PARTS)


def test_objcopy_puts_the_same_into_the_same_stub(tmp_path: Path) -> None:
    if not _STUB.is_file():
        pytest.skip("needs systemd-boot-efi: run script/bootstrap")
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(PARTS[".linux" if name == "vmlinuz" else ".initrd"])
    out = tmp_path / "out"
    unified_image(out, vmlinuz=tmp_path / "vmlinuz", initrd=tmp_path / "initrd", cmdline="quiet")
    theirs = {name: data for name, (_, data) in sections(out.read_bytes()).items() if name in PARTS}
    try:
        made = unify(_STUB.read_bytes(), PARTS)
    except UsageError as error:
        pytest.skip(f"this stub: {error}")
    assert {n: d for n, (_, d) in sections(made).items() if n in PARTS} == theirs == PARTS


@pytest.mark.parametrize(
    ("stub", "text"),
    [
        (b"", "no program"),
        (b"MZ" + bytes(200), "no 64-bit EFI program"),
        (program(0x160), "no room"),
    ],
)
def test_what_is_no_stub_is_refused(stub: bytes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        unify(stub, PARTS)
