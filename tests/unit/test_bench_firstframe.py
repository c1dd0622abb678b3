"""What the boot bench reads out of a capture."""

import struct
from pathlib import Path

import pytest

from bench.firstframe import _measured, doubles

OWN, OURS = bytes.fromhex("525400000001"), bytes.fromhex("020000000001")


def pcap(path: Path, *frames: tuple[float, bytes]) -> Path:
    head = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for when, frame in frames:
        micro = round(when * 1e6)
        head += struct.pack("=IIII", micro // 10**6, micro % 10**6, len(frame), len(frame)) + frame
    path.write_bytes(head + b"half")
    return path


def dhcp(src: bytes, dst: bytes, sport: int, kind: int, yiaddr: bytes, chaddr: bytes) -> bytes:
    frame = (
        dst + src + b"\x08\x00" + bytes(20) + struct.pack("!HH", sport, 67 if sport == 68 else 68)
    )
    frame = frame.ljust(42, b"\0") + bytes(16) + yiaddr + bytes(8) + chaddr
    return frame.ljust(278, b"\0") + b"\x63\x82\x53\x63" + bytes((53, 1, kind, 255))


def test_our_time_is_what_ends_with_an_answer_of_ours(tmp_path: Path) -> None:
    everybody = b"\xff" * 6
    capture = pcap(
        tmp_path / "c",
        (1.0, dhcp(OURS, everybody, 68, 1, bytes(4), OURS)),  # our own look for other servers
        (2.0, dhcp(OWN, everybody, 68, 1, bytes(4), OWN)),
        (2.1, dhcp(OURS, everybody, 67, 2, bytes(4), OWN)),
        (4.0, dhcp(OURS, everybody, 68, 1, bytes(4), OURS)),
        (5.0, dhcp(OWN, everybody, 68, 3, bytes(4), OWN)),
        (5.02, dhcp(OURS, OWN, 67, 5, bytes(4), OWN)),
        (6.0, everybody + OWN + b"\x88\xa2"),
    )
    found = _measured(capture, OWN)
    assert {key: round(value, 3) for key, value in found.items()} == {
        "wall": 4.0,
        "ours": 0.12,
        "longest": 0.1,
    }
    with pytest.raises(RuntimeError):
        _measured(capture, OURS)


def test_an_address_given_twice_is_seen(tmp_path: Path) -> None:
    other = bytes.fromhex("525400000002")
    frames = [(1.0, dhcp(OURS, OWN, 67, 5, b"\x0a\0\0\1", OWN))] * 2
    assert doubles(pcap(tmp_path / "once", *frames)) == 0
    frames.append((2.0, dhcp(OURS, other, 67, 5, b"\x0a\0\0\1", other)))
    assert doubles(pcap(tmp_path / "twice", *frames)) == 1
    with pytest.raises(RuntimeError):
        doubles(pcap(tmp_path / "none"))
