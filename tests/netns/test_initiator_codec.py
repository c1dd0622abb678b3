"""The initiator's codec and pace, without a network: what a reply may do to it."""

import contextlib
import random

import pytest

from aoe_fast.frames import (
    AtaError,
    BadReply,
    Command,
    ConfigCommand,
    LinuxPace,
    Pace,
    TargetError,
    build,
    config_body,
    parse,
    parse_ata,
    parse_config,
    parse_identity,
    sectors_that_fit,
    transfer_body,
)

DST, SRC = b"\x02" * 6, b"\x04" * 6


def reply(command: int, body: bytes) -> bytes:
    frame = bytearray(build(DST, SRC, 16, 3, command, 0x01020304, body))
    frame[14] |= 0x08
    return bytes(frame)


def test_a_request_on_the_wire() -> None:
    frame = build(DST, SRC, 0x1234, 5, Command.CONFIG, 0xA1B2C3D4, config_body())
    assert frame.hex() == (
        "02020202020204040404040488a2100012340501a1b2c3d4"
        "0000000000100000"
    ) + "00" * 28  # fmt: skip
    assert parse(frame) is None, "a request is no reply"


def test_read_and_write_bodies() -> None:
    assert transfer_body(0x0102030405, 2, None, lba48=True).hex() == "400002240504030201000000"
    assert transfer_body(0x01020304, 1, None, lba48=False).hex() == "00000120040302e100000000"
    write = transfer_body(7, 1, b"x" * 512, lba48=True)
    assert write[:12].hex() == "410001340700000000000000"
    assert write[12:] == b"x" * 512


def test_config_body_carries_its_string() -> None:
    assert config_body(ConfigCommand.SET, b"ab").hex() == "0000000000130002" + b"ab".hex()


def test_a_reply_with_padding() -> None:
    body = bytes.fromhex("0040 0001 02 10 0003") + b"lab"
    parsed = parse(reply(Command.CONFIG, body) + b"trailing")
    assert parsed is not None
    assert (parsed.shelf, parsed.slot, parsed.tag) == (16, 3, 0x01020304)
    config = parse_config(parsed.body)
    assert (config.bufcnt, config.firmware, config.scnt, config.string) == (64, 1, 2, b"lab")


def test_identity_falls_back_to_28_bits() -> None:
    words = [0] * 256
    words[60], words[61] = 0x5678, 0x0034
    words[100] = 99
    data = b"".join(word.to_bytes(2, "little") for word in words)
    assert parse_identity(data).sectors == 0x345678
    words[83] = words[86] = 1 << 10
    data = b"".join(word.to_bytes(2, "little") for word in words)
    assert parse_identity(data).sectors == 99


def test_nonsense_is_a_bad_reply_or_none() -> None:
    rng = random.Random(3)
    good = [
        reply(Command.CONFIG, bytes.fromhex("0040 0001 02 10 0003") + b"lab"),
        reply(Command.ATA, bytes(12) + bytes(512)),
    ]
    for _ in range(20000):
        frame = bytearray(rng.choice(good))
        del frame[rng.randrange(len(frame) + 1) :]
        for _ in range(rng.randrange(3)):
            if frame:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
        parsed = parse(bytes(frame))
        if parsed is None:
            continue
        for decode in (parse_config, parse_ata, parse_identity):
            with contextlib.suppress(BadReply):
                decode(parsed.body)


def test_errors_speak() -> None:
    assert str(AtaError("16.0 read", 0x41, 0x10)) == (
        "16.0 read: sector out of range (status 0x41, error 0x10)"
    )
    assert str(AtaError("16.0 read", 0x01, 0)) == "16.0 read: failed (status 0x01, error 0x00)"
    assert "reserved by another" in str(TargetError("16.0", 6))
    assert "unknown error" in str(TargetError("16.0", 77))


@pytest.mark.parametrize(
    ("mtu", "scnt", "sectors"),
    [(1500, 2, 2), (1500, 16, 2), (9000, 16, 16), (9000, 255, 17), (1500, 0, 2), (500, 2, 0)],
)
def test_sectors_per_frame(mtu: int, scnt: int, sectors: int) -> None:
    assert sectors_that_fit(mtu, scnt) == sectors


@pytest.mark.parametrize(
    ("replies", "seconds"), [(0, 16.5), (10, 6.1), (100, 1.7), (500, 0.36), (1000, 0.05)]
)
def test_what_a_lost_frame_costs_linux(replies: int, seconds: float) -> None:
    """The driver's arithmetic, simulated elsewhere, at a round trip of 200 us."""
    pace = LinuxPace(64, 0.25)
    for _ in range(replies):
        pace.answered(0.0002)
    assert pace.rto == pytest.approx(seconds, rel=0.1)


def test_linux_window() -> None:
    assert LinuxPace(1, 0.25).window == 1
    pace = LinuxPace(16, 0.25)
    assert pace.window == 8
    for _ in range(8):
        pace.answered(0.001)
    assert pace.window == 16
    pace.lost()
    assert pace.window == 1
    for _ in range(500):
        pace.answered(0.001)
    assert pace.window == 16


def test_steady_pace_follows_the_round_trip() -> None:
    pace = Pace(64, 0.25)
    assert (pace.window, pace.rto) == (64, 0.25)
    for _ in range(50):
        pace.answered(0.0001)
    assert pace.rto == 0.05
    for _ in range(50):
        pace.answered(0.2)
    assert pace.rto == pytest.approx(0.2, rel=0.3)
