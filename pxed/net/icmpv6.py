"""Router Solicitation in, Router Advertisement out: whole Ethernet frames (RFC 4861). Pure.

iPXE waits 13 to 16 s for IPv6 configuration after its DHCP ACK. An advertisement that says "no
router, no prefix, nothing managed here" ends that in milliseconds and configures nothing.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from pxed.mac import Mac, mac_bytes, mac_text
from pxed.net.packet import ETH_IPV6, Instruction, checksum

ALL_ROUTERS = bytes.fromhex("333300000002")  # RFC 2464 section 7: ff02::2
_ALL_NODES = IPv6Address("ff02::1")
_UNSPECIFIED = IPv6Address("::")
_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT = 133, 134  # sections 4.1, 4.2
_IPV6 = struct.Struct("!IHBB16s16s")
_HEADER = 14 + _IPV6.size

# Ethernet type IPv6, next header ICMPv6, hop limit 255, type 133.
FILTER: tuple[Instruction, ...] = (
    (0x28, 0, 0, 12),  # ldh [12]
    (0x15, 0, 7, ETH_IPV6),  # jne drop
    (0x30, 0, 0, 20),  # ldb [20]
    (0x15, 0, 5, _ICMPV6),
    (0x30, 0, 0, 21),  # ldb [21]
    (0x15, 0, 3, 255),
    (0x30, 0, 0, 54),  # ldb [54]
    (0x15, 0, 1, _SOLICITATION),
    (0x06, 0, 0, 0xFFFF),  # ret
    (0x06, 0, 0, 0),  # drop: ret 0
)


@dataclass(frozen=True, slots=True)
class Solicitation:
    """Who asks for a router."""

    mac: Mac
    ip: IPv6Address


def link_local(mac: Mac) -> IPv6Address:
    """The address that a MAC stands for (RFC 4291 appendix A)."""
    raw = mac_bytes(mac)
    body = bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + body)


def solicitation(frame: bytes) -> Solicitation | None:
    """The valid solicitation in ``frame`` (RFC 4861 section 6.1.1), or None."""
    if len(frame) < _HEADER + 8 or frame[12:14] != ETH_IPV6.to_bytes(2, "big"):
        return None
    head, size, following, hops, source, target = _IPV6.unpack_from(frame, 14)
    body = frame[_HEADER : _HEADER + size]
    if head >> 28 != 6 or following != _ICMPV6 or hops != 255 or size < 8 or len(body) != size:
        return None
    if body[0] != _SOLICITATION or body[1] != 0 or _check(source, target, body) != 0:
        return None
    if frame[6] & 1:
        return None
    return Solicitation(mac_text(frame[6:12]), IPv6Address(source))


def advertisement(own: Mac, asked: Solicitation) -> bytes:
    """The frame that answers: router lifetime 0, no prefix, to that machine's MAC alone."""
    source = link_local(own).packed
    target = (_ALL_NODES if asked.ip == _UNSPECIFIED else asked.ip).packed
    option = b"\x01\x01" + mac_bytes(own)  # section 4.6.1: source link-layer address
    # Current hop limit 64, no flags, and 0 for all times: "unspecified by this router".
    bare = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, 0, 0, 0) + option
    body = bare[:2] + _check(source, target, bare).to_bytes(2, "big") + bare[4:]
    head = _IPV6.pack(6 << 28, len(body), _ICMPV6, 255, source, target)
    return mac_bytes(asked.mac) + mac_bytes(own) + ETH_IPV6.to_bytes(2, "big") + head + body


def _check(source: bytes, target: bytes, body: bytes) -> int:
    """RFC 4443 section 2.3; 0 over a body that holds its right checksum."""
    return checksum(source + target + struct.pack("!II", len(body), _ICMPV6) + body)
