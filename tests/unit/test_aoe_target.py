"""Target.handle: what is silent, addressing, class 0."""

import errno
import os
import struct
from pathlib import Path

import pytest

from aoe_fast import AoeError, Export, Target
from tests.aoe_frames import (
    ABRT,
    BROADCAST,
    CHECK_POWER,
    CLIENT,
    FLUSH,
    FLUSH_EXT,
    IDENTIFY,
    IDNF,
    READ,
    READ_EXT,
    SERVER,
    SMART,
    UNC,
    WRITE,
    WRITE_EXT,
    Reply,
    ata,
    ata_body,
    config,
    frame,
)

SECTORS = 64


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
    return path


@pytest.fixture
def target(disk: Path) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): Export(disk, writable=True, serial="S-1")})
    return target


@pytest.fixture
def read_only(disk: Path) -> Target:
    target = Target()
    target.set_view(None, {(16, 3): Export(disk)})
    return target


def ask(target: Target, request: bytes, mtu: int = 1500) -> Reply:
    (raw,) = target.handle(request, SERVER, mtu)
    assert len(raw) >= 60
    return Reply(raw)


# Silence.


@pytest.mark.parametrize("size", [0, 13, 14, 23])
def test_less_than_a_header_is_silent(target: Target, size: int) -> None:
    assert target.handle(frame(1, config(0))[:size], SERVER) == []


@pytest.mark.parametrize(("command", "size"), [(0, 35), (1, 31), (2, 27), (3, 25)])
def test_less_than_the_class_needs_is_silent(target: Target, command: int, size: int) -> None:
    assert target.handle(frame(command, bytes(40))[:size], SERVER) == []


def test_a_response_is_silent(target: Target) -> None:
    assert target.handle(frame(1, config(0), flags=0x18), SERVER) == []


def test_a_group_source_is_silent(target: Target) -> None:
    assert target.handle(ata(READ, 0, 1, src=b"\x01" + CLIENT[1:]), SERVER) == []


def test_a_broadcast_source_is_silent(target: Target) -> None:
    assert target.handle(ata(READ, 0, 1, src=BROADCAST), SERVER) == []


def test_another_stations_frame_is_silent(target: Target) -> None:
    assert target.handle(ata(READ, 0, 1, dst=b"\x02\0\0\0\0\x77"), SERVER) == []


def test_another_ethertype_is_silent(target: Target) -> None:
    request = ata(READ, 0, 1)
    assert target.handle(request[:12] + b"\x08\x00" + request[14:], SERVER) == []


@pytest.mark.parametrize(("shelf", "slot"), [(16, 4), (17, 3), (0, 0), (3, 16)])
def test_another_address_is_silent(target: Target, shelf: int, slot: int) -> None:
    assert target.handle(ata(READ, 0, 1, shelf=shelf, slot=slot), SERVER) == []


# The reply's header.


def test_reply_header(target: Target) -> None:
    reply = ask(target, ata(READ, 0, 1, dst=BROADCAST, shelf=0xFFFF, slot=0xFF, tag=0xDEADBEEF))
    assert (reply.dst, reply.src) == (CLIENT, SERVER)
    assert reply.flags == 0x18
    assert reply.address == (16, 3)
    assert reply.tag == 0xDEADBEEF


def test_trailing_bytes_are_tolerated(target: Target) -> None:
    assert ask(target, ata(READ, 1, 1) + bytes(1000)).data == b"\x01" * 512


@pytest.mark.parametrize("version", [0, 2, 15])
def test_another_version_is_error_5(target: Target, version: int) -> None:
    assert ask(target, frame(1, config(0), flags=version << 4)).error == 5


@pytest.mark.parametrize("command", [4, 5, 0x80, 0xF0, 255])
def test_another_class_is_error_1(target: Target, command: int) -> None:
    assert ask(target, frame(command)).error == 1


@pytest.mark.parametrize(
    ("shelf", "slot", "answers"),
    [
        (0xFFFF, 0xFF, {(16, 3), (16, 4), (17, 3)}),
        (16, 0xFF, {(16, 3), (16, 4)}),
        (0xFFFF, 3, {(16, 3), (17, 3)}),
        (0xFFFF, 9, set()),
    ],
)
@pytest.mark.parametrize("command", [0, 1, 2, 3, 9])
def test_wildcards_are_independent_and_for_every_class(
    disk: Path, command: int, shelf: int, slot: int, answers: set[tuple[int, int]]
) -> None:
    target = Target()
    export = Export(disk)
    target.set_view(None, dict.fromkeys([(16, 3), (16, 4), (17, 3)], export))
    body = {0: ata_body(IDENTIFY), 1: config(0), 2: bytes(4), 3: bytes(2), 9: b""}[command]
    replies = target.handle(frame(command, body, shelf=shelf, slot=slot), SERVER)
    assert {Reply(raw).address for raw in replies} == answers
    assert len(replies) == len(answers)


# Reads.


@pytest.mark.parametrize("opcode", [READ, READ_EXT])
@pytest.mark.parametrize("aflags", [0x00, 0x40])
def test_either_opcode_with_either_width(target: Target, opcode: int, aflags: int) -> None:
    reply = ask(target, ata(opcode, 7, 2, aflags=aflags))
    assert (reply.status, reply.ata_error) == (0x40, 0)
    assert reply.data == b"\x07" * 512 + b"\x08" * 512


def test_lba28_masks_the_drive_bits(target: Target) -> None:
    assert ask(target, ata(READ, 0xE0000007, 1, aflags=0)).data == b"\x07" * 512


def test_lba28_ignores_the_high_bytes(target: Target) -> None:
    assert ask(target, ata(READ, 0xAAAA_0000_0007, 1, aflags=0)).data == b"\x07" * 512


@pytest.mark.parametrize("opcode", [READ_EXT, WRITE_EXT])
@pytest.mark.parametrize("lba", [1 << 28, 0x10000007, 1 << 32 | 7, 0x4000_0007, 0xF000_0007])
def test_an_ext_opcode_without_the_flag_is_48_bits(
    target: Target, disk: Path, opcode: int, lba: int
) -> None:
    """vblade decides by the opcode: masked to 28 bits, the write would hit sector 0 or 7."""
    before = disk.read_bytes()
    reply = ask(target, ata(opcode, lba, 1, aflags=0, data=b"x" * 512))
    assert (reply.status, reply.ata_error) == (0x41, IDNF)
    assert disk.read_bytes() == before


def test_an_ext_opcode_without_the_flag_may_carry_device_bits(target: Target, disk: Path) -> None:
    assert ask(target, ata(READ_EXT, 0xE000_0007, 1, aflags=0)).data == b"\x07" * 512
    assert ask(target, ata(WRITE_EXT, 0xE000_0007, 1, aflags=0, data=b"x" * 512)).status == 0x40
    assert disk.read_bytes()[7 * 512 : 8 * 512] == b"x" * 512
    # Anything in the upper bytes: the address is 48 bits wide, and past the end.
    assert ask(target, ata(READ_EXT, 0x1_E000_0007, 1, aflags=0)).ata_error == IDNF
    assert ask(target, ata(READ_EXT, 0xE000_0007, 1)).ata_error == IDNF


def test_device_bits_that_could_be_an_address_abort(tmp_path: Path) -> None:
    """On 2 TiB 0xE0000007 is a sector too: with neither reading surely right, none is taken."""
    path = tmp_path / "large"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(512 << 32)
    target = Target()
    target.set_view(None, {(16, 3): Export(path, writable=True, durability="writeback")})
    for opcode, data in ((READ_EXT, b""), (WRITE_EXT, b"x" * 512)):
        assert ask(target, ata(opcode, 0xE000_0007, 1, aflags=0, data=data)).ata_error == ABRT
        assert ask(target, ata(opcode, 0xE000_0007, 1, aflags=0x40, data=data)).status == 0x40
    assert ask(target, ata(READ, 7, 1)).data == bytes(512)
    assert ask(target, ata(READ, 0xE000_0007, 1)).data == b"x" * 512


def test_lba48_uses_every_bit(target: Target) -> None:
    assert ask(target, ata(READ_EXT, 0xE0000007, 1)).ata_error == IDNF
    assert ask(target, ata(READ_EXT, 1 << 47, 1)).ata_error == IDNF


def test_read_of_no_sectors_aborts(target: Target) -> None:
    reply = ask(target, ata(READ, 0, 0))
    assert (reply.status, reply.ata_error) == (0x41, ABRT)


@pytest.mark.parametrize(
    ("mtu", "most"), [(1500, 2), (600, 1), (4132, 8), (5000, 8), (9000, 16), (65535, 16)]
)
def test_the_largest_read_follows_the_mtu(target: Target, mtu: int, most: int) -> None:
    assert len(ask(target, ata(READ, 0, most), mtu).data) == most * 512
    refused = ask(target, ata(READ, 0, most + 1), mtu)
    assert (refused.status, refused.ata_error, len(refused.raw)) == (0x41, ABRT, 60)


def test_an_mtu_without_room_for_a_sector(target: Target) -> None:
    with pytest.raises(AoeError, match="MTU 500"):
        target.handle(ata(READ, 0, 1), SERVER, 500)


@pytest.mark.parametrize(("lba", "count"), [(SECTORS - 1, 1), (SECTORS - 2, 2)])
def test_the_last_sectors_can_be_read(target: Target, lba: int, count: int) -> None:
    assert ask(target, ata(READ, lba, count)).status == 0x40


@pytest.mark.parametrize(
    ("lba", "count"), [(SECTORS, 1), (SECTORS - 1, 2), (0x0FFFFFFF, 2), ((1 << 48) - 1, 2)]
)
def test_past_the_end_is_idnf(target: Target, lba: int, count: int) -> None:
    reply = ask(target, ata(READ_EXT, lba, count))
    assert (reply.status, reply.ata_error, len(reply.raw)) == (0x41, IDNF, 60)


def test_a_truncated_image_is_unc(target: Target, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(4096)
    assert ask(target, ata(READ, 7, 1)).status == 0x40
    reply = ask(target, ata(READ, 60, 2))
    assert (reply.status, reply.ata_error, len(reply.raw)) == (0x41, UNC, 60)


# Writes.


@pytest.mark.parametrize("opcode", [WRITE, WRITE_EXT])
@pytest.mark.parametrize("aflags", [0x01, 0x41, 0x40])
def test_write(target: Target, disk: Path, opcode: int, aflags: int) -> None:
    reply = ask(target, ata(opcode, 9, 2, aflags=aflags, data=b"a" * 512 + b"b" * 512))
    assert (reply.status, reply.ata_error, len(reply.raw)) == (0x40, 0, 60)
    data = disk.read_bytes()
    assert data[9 * 512 : 11 * 512] == b"a" * 512 + b"b" * 512
    assert data[8 * 512 : 9 * 512] == b"\x08" * 512
    assert data[11 * 512 : 12 * 512] == b"\x0b" * 512


def test_a_write_is_read_back(target: Target) -> None:
    ask(target, ata(WRITE, 9, 1, data=b"w" * 512))
    assert ask(target, ata(READ, 9, 1)).data == b"w" * 512


def test_write_to_a_read_only_export_aborts(read_only: Target, disk: Path) -> None:
    before = disk.read_bytes()
    reply = ask(read_only, ata(WRITE, 0, 1, data=b"x" * 512))
    assert (reply.status, reply.ata_error) == (0x41, ABRT)
    assert disk.read_bytes() == before


def test_short_payload_aborts(target: Target, disk: Path) -> None:
    before = disk.read_bytes()
    reply = ask(target, ata(WRITE, 0, 2, data=b"x" * 1023))
    assert (reply.status, reply.ata_error) == (0x41, ABRT)
    assert disk.read_bytes() == before


def test_only_the_counted_sectors_are_written(target: Target, disk: Path) -> None:
    ask(target, ata(WRITE, 0, 1, data=b"x" * 1024))
    assert disk.read_bytes()[512:1024] == b"\x01" * 512


def test_write_past_the_end_is_idnf(target: Target, disk: Path) -> None:
    reply = ask(target, ata(WRITE, SECTORS - 1, 2, data=b"x" * 1024))
    assert (reply.status, reply.ata_error) == (0x41, IDNF)
    assert disk.stat().st_size == SECTORS * 512


def test_write_of_no_sectors_aborts(target: Target) -> None:
    assert ask(target, ata(WRITE, 0, 0, data=b"x" * 512)).ata_error == ABRT


def test_full_disk_is_an_error_for_that_write_alone() -> None:
    try:
        import resource
    except ImportError:
        pytest.skip("needs setrlimit")
    # RLIMIT_FSIZE makes pwrite fail (EFBIG) just as ENOSPC does, without a file system to fill.
    import signal
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SECTORS * 512)
        target = Target()
        target.set_view(None, {(16, 3): Export(file.name, writable=True)})
        old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        try:
            failed = ask(target, ata(WRITE, 8, 1, data=b"x" * 512))
            fine = ask(target, ata(WRITE, 7, 1, data=b"x" * 512))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, old_handler)
    assert (failed.status, failed.ata_error) == (0x41, UNC), errno.errorcode[errno.EFBIG]
    assert fine.status == 0x40


# The rest of class 0.


def words(data: bytes) -> tuple[int, ...]:
    return struct.unpack("<256H", data)


def text(data: bytes, first: int, last: int) -> str:
    raw = data[2 * first : 2 * last + 2]
    return bytes(raw[i ^ 1] for i in range(len(raw))).decode().rstrip()


def test_identify_words(target: Target) -> None:
    reply = ask(target, ata(IDENTIFY))
    assert reply.status == 0x40
    assert len(reply.data) == 512
    word = words(reply.data)
    assert word[47] == 0x8000
    assert word[49] == 0x0200
    assert word[60] | word[61] << 16 == SECTORS
    assert word[83] & 0xC000 == 0x4000
    assert word[83] & word[86] & 0x3400 == 0x3400
    assert word[84] == word[87] == 0x4000
    assert sum(word[100 + i] << 16 * i for i in range(4)) == SECTORS
    assert word[82] & 1 == 0  # no SMART
    assert text(reply.data, 10, 19) == "S-1"
    assert text(reply.data, 23, 26) == "0.1.0"
    assert text(reply.data, 27, 46) == "aoe_fast"


def test_identify_of_a_large_disk(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    sectors = (1 << 32) + 5
    with path.open("r+b") as file:
        file.truncate(sectors * 512)
    target = Target()
    target.set_view(None, {(16, 3): Export(path)})
    word = words(ask(target, ata(IDENTIFY)).data)
    assert word[60] | word[61] << 16 == 0x0FFFFFFF
    assert sum(word[100 + i] << 16 * i for i in range(4)) == sectors
    assert (word[54], word[55], word[56]) == (16383, 16, 63)
    assert ask(target, ata(READ_EXT, sectors - 1, 1)).status == 0x40
    assert ask(target, ata(READ_EXT, sectors, 1)).ata_error == IDNF


@pytest.mark.parametrize("tib", [1, 2, 3])
def test_no_boundary_of_a_tebibyte_is_special(tmp_path: Path, tib: int) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, (tib << 40) + (1 << 20))
    target = Target()
    target.set_view(None, {(16, 3): Export(path, writable=True)})
    edge = tib << 31
    for first in (edge - 1, edge, edge + 5):
        data = first.to_bytes(8, "big") * 128
        assert ask(target, ata(WRITE_EXT, first, 2, data=data)).status == 0x40
        assert ask(target, ata(READ_EXT, first, 2)).data == data
    with path.open("rb") as file:
        file.seek((edge + 5) * 512)
        assert file.read(8) == (edge + 5).to_bytes(8, "big")


def test_default_serials_differ(tmp_path: Path) -> None:
    serials = set()
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(512))
        serials.add(Export(tmp_path / name).serial)
    assert len(serials) == 2


@pytest.mark.parametrize("opcode", [FLUSH, FLUSH_EXT])
def test_flush(target: Target, read_only: Target, opcode: int) -> None:
    assert ask(target, ata(opcode)).status == 0x40
    assert ask(read_only, ata(opcode)).status == 0x40


def test_check_power_mode_says_active(target: Target) -> None:
    reply = ask(target, ata(CHECK_POWER))
    assert (reply.status, reply.body[2]) == (0x40, 0xFF)


@pytest.mark.parametrize("opcode", [SMART, 0x00, 0x06, 0x25, 0xA1, 0xC8, 0xFF])
def test_other_opcodes_abort(target: Target, opcode: int) -> None:
    reply = ask(target, ata(opcode, 0, 1))
    assert (reply.status, reply.ata_error, reply.flags & 4) == (0x41, ABRT, 0)


@pytest.mark.parametrize("bufcnt", [-1, 0, 1, 65536])
def test_a_queue_depth_that_stops_linux_is_refused(bufcnt: int) -> None:
    with pytest.raises(AoeError, match="bufcnt"):
        Target(bufcnt=bufcnt)
