"""What the seat bench reads out of frames, and what it makes of the rounds."""

import struct

from bench.seat import summary
from bench.seatwire import LOGIN, MOUNT, frames, stage_of

OWN, OTHER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def aoe(source: bytes, shelf: int, slot: int, command: int) -> bytes:
    return bytes(6) + source + b"\x88\xa2\x10\0" + struct.pack(">HBBI", shelf, slot, command, 1)


def udp(source: bytes, port: int, payload: bytes) -> bytes:
    ip = bytes(9) + b"\x11" + bytes(10)
    head = bytes(6) + source + b"\x08\x00" + ip + struct.pack(">HHHH", 68, port, 0, 0)
    return head + payload.rjust(max(len(payload), 300), b"\0")


def test_the_stages_of_a_boot_in_order() -> None:
    boot = [
        (udp(OWN, 67, b""), "DISCOVER"),
        (udp(OWN, 69, b""), "boot file"),
        (udp(OWN, 67, b"M\x04iPXE"), "iPXE DISCOVER"),
        (udp(OTHER, 68, b"\x35\x01\x05"), "iPXE ACK"),
        (aoe(OWN, 16, 0, 1), "first AoE frame"),
        (aoe(OWN, 16, 0, 0), None),  # a read
        (aoe(OTHER, 0xFFFF, 255, 1), None),
        (aoe(OWN, 0xFFFF, 255, 1), "AoE driver up"),
        (udp(OWN, 67, b""), None),  # the system's own DHCP
    ]
    seen: dict[str, float] = {}
    for frame, stage in boot:
        assert stage_of(frame, OWN, seen) == stage
        if stage is not None:
            seen.setdefault(stage, 0.0)


def test_an_ack_before_ipxe_asked_is_the_firmwares() -> None:
    assert stage_of(udp(OTHER, 68, b"\x35\x01\x05"), OWN, {}) is None


def test_the_frames_of_a_capture() -> None:
    record = struct.pack("<IIII", 5, 250000, 3, 60) + b"abc"
    assert list(frames(bytes(24) + record + record[:10])) == [(5.25, b"abc")]


def test_a_rounds_ratio_counts_not_the_medians() -> None:
    rounds = [
        {"san": {MOUNT: a, LOGIN: 2 * a, "bytes": 1.0}, "peers": {MOUNT: b, LOGIN: b, "bytes": 2.0}}
        for a, b in ((1.0, 2.0), (3.0, 4.0), (5.0, 50.0))
    ]
    found = summary(rounds, "san")
    assert found["ratios"][MOUNT] == {"median": 0.5, "least": 0.1, "most": 0.75}
    assert found["ratios"][LOGIN]["median"] == 1.0
    assert found["medians"]["peers"][MOUNT] == 4.0
    assert found["ratios"]["bytes"]["median"] == 0.5
