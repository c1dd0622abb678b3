"""Router advertisements and the raw frames, byte by byte."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from pxed.mac import Mac, mac_bytes
from pxed.net.icmpv6 import Solicitation, advertisement, link_local, solicitation
from pxed.net.packet import arp_probe, arp_sender, checksum, udp_frame

OWN, PEER = Mac("52:54:00:00:00:01"), Mac("52:54:00:12:34:56")
# iPXE's solicitation as captured: from its link-local address to ff02::2.
RS = bytes.fromhex(
    "33330000000252540012345686dd"
    "6000000000103afffe80000000000000505400fffe123456ff020000000000000000000000000002"
    "85007bb0000000000101525400123456"
)  # fmt: skip


def with_checksum(frame: bytes) -> bytes:
    body = frame[54:56] + b"\0\0" + frame[58:]
    pseudo = frame[22:54] + struct.pack("!II", len(body), 58)
    return frame[:56] + checksum(pseudo + body).to_bytes(2, "big") + frame[58:]


GOOD = with_checksum(RS)


def test_solicitation() -> None:
    assert solicitation(GOOD) == Solicitation(PEER, IPv6Address("fe80::5054:ff:fe12:3456"))


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_truncated(size: int) -> None:
    assert solicitation(GOOD[:size]) is None


@pytest.mark.parametrize("at", [12, 14, 20, 21, 40, 54, 55, 57, 63])
def test_any_wrong_byte_is_refused(at: int) -> None:
    bad = bytearray(GOOD)
    bad[at] ^= 0x40
    assert solicitation(bytes(bad)) is None


def test_link_local() -> None:
    assert link_local(OWN) == IPv6Address("fe80::5054:ff:fe00:1")


def test_the_advertisement() -> None:
    asked = solicitation(GOOD)
    assert asked is not None
    frame = advertisement(OWN, asked)
    assert frame[:14] == mac_bytes(PEER) + mac_bytes(OWN) + b"\x86\xdd"
    assert frame[20:22] == b"\x3a\xff"
    assert IPv6Address(frame[22:38]) == link_local(OWN)
    assert IPv6Address(frame[38:54]) == asked.ip
    assert frame[54:56] == b"\x86\0"
    assert frame[58:70] == b"\x40\0" + bytes(10)  # hop limit 64; no flags; lifetime and times 0
    assert frame[70:] == b"\1\1" + mac_bytes(OWN)
    assert with_checksum(frame) == frame


def test_a_machine_without_an_address_is_answered_at_its_mac() -> None:
    frame = advertisement(OWN, Solicitation(PEER, IPv6Address("::")))
    assert frame[:6] == mac_bytes(PEER)
    assert IPv6Address(frame[38:54]) == IPv6Address("ff02::1")


def test_checksum_of_the_rfc() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # RFC 1071 section 3
    assert checksum(b"\x01") == 0xFEFF


def test_udp_frame_checks() -> None:
    source, target = (IPv4Address("10.0.0.1"), 67), (IPv4Address("10.0.0.50"), 68)
    frame = udp_frame(mac_bytes(OWN), mac_bytes(PEER), source, target, b"payload")
    assert checksum(frame[14:34]) == 0
    pseudo = frame[26:34] + struct.pack("!HH", 17, len(frame) - 34)
    assert checksum(pseudo + frame[34:]) == 0
    assert frame[-7:] == b"payload"


def test_arp() -> None:
    probe = arp_probe(mac_bytes(OWN), IPv4Address("10.0.0.9"))
    assert arp_sender(probe) is None  # a probe claims nothing
    answer = probe[:28] + IPv4Address("10.0.0.9").packed + probe[32:]
    assert arp_sender(answer) == (mac_bytes(OWN), IPv4Address("10.0.0.9"))
    assert arp_sender(answer[:30]) is None
