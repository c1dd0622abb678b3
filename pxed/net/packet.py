"""AF_PACKET: raw sockets with a kernel filter, and the IPv4/UDP frame of an L2 unicast.

Frame building is pure; ``open_raw`` is the only thing here that touches the system.
"""

import ctypes
import socket
import struct
import sys
from array import array
from collections.abc import Sequence
from ipaddress import IPv4Address

from pxed.errors import HostError
from pxed.net.link import Link

ETH_IPV4 = 0x0800
ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_MULTICAST = 0
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")

Instruction = tuple[int, int, int, int]
"""Classic BPF: code, jump if true, jump if false, constant."""

# A frame of a VLAN without an interface here comes up on the card itself, its tag gone and marked
# as another host's; so does everything on a card in promiscuous mode. An answer to it would go to
# a network where it was not asked, and an ARP reply from there says nothing of ours.
_OURS: tuple[Instruction, ...] = (
    (0x30, 0, 0, 0xFFFFF004),  # ldb [SKF_AD_OFF + SKF_AD_PKTTYPE]
    (0x15, 0, 1, 3),  # jeq PACKET_OTHERHOST
    (0x06, 0, 0, 0),  # ret 0
)
_EVERYTHING: tuple[Instruction, ...] = ((0x06, 0, 0, 0xFFFF),)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of ``data``."""
    words = array("H", data + b"\0" if len(data) & 1 else data)
    if sys.byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(
    source_mac: bytes,
    target_mac: bytes,
    source: tuple[IPv4Address, int],
    target: tuple[IPv4Address, int],
    payload: bytes,
) -> bytes:
    """An Ethernet frame with an IPv4 UDP datagram, both checksums set (RFC 791, 768)."""
    size = _UDP.size + len(payload)
    pseudo = source[0].packed + target[0].packed + struct.pack("!HH", 17, size)
    bare = _UDP.pack(source[1], target[1], size, 0)
    check = checksum(pseudo + bare + payload) or 0xFFFF  # 0 would mean "no checksum"
    udp = _UDP.pack(source[1], target[1], size, check) + payload
    fields = [0x45, 0, _IPV4.size + size, 0, 0, 64, 17, 0, source[0].packed, target[0].packed]
    fields[7] = checksum(_IPV4.pack(*fields))
    return target_mac + source_mac + ETH_IPV4.to_bytes(2, "big") + _IPV4.pack(*fields) + udp


def arp_probe(own_mac: bytes, wanted: IPv4Address) -> bytes:
    """Ask who has ``wanted`` without claiming any address (RFC 5227 section 2.1.1)."""
    body = _ARP.pack(1, ETH_IPV4, 6, 4, 1, own_mac, bytes(4), bytes(6), wanted.packed)
    return b"\xff" * 6 + own_mac + ETH_ARP.to_bytes(2, "big") + body


def arp_sender(frame: bytes) -> tuple[bytes, IPv4Address] | None:
    """Who says in this ARP frame that it has which address; None if nobody does."""
    if len(frame) < 14 + _ARP.size:
        return None
    htype, ptype, hlen, plen, _, mac, ip, _, _ = _ARP.unpack_from(frame, 14)
    if (htype, ptype, hlen, plen) != (1, ETH_IPV4, 6, 4) or ip == bytes(4):
        return None
    return mac, IPv4Address(ip)


def open_raw(
    link: Link,
    ethertype: int = 0,
    program: Sequence[Instruction] = (),
    groups: Sequence[bytes] = (),
) -> socket.socket:
    """A non-blocking raw socket on ``link`` that sends frames and receives ``ethertype``.

    0 receives nothing; another VLAN's or host's frames never come. ``program`` filters the rest in
    the kernel; ``groups`` are multicast MACs to join.
    HostError without the privilege.
    """
    try:
        # Protocol 0 until the filter is there, or unfiltered frames would already queue.
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise HostError("raw sockets need root or CAP_NET_RAW: run pxed as root") from None
    try:
        _attach(raw, (*_OURS, *(program or _EVERYTHING)))
        raw.bind((link.name, ethertype))
        for group in groups:
            request = struct.pack("iHH8s", link.index, _PACKET_MR_MULTICAST, len(group), group)
            raw.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    except OSError as error:
        raw.close()
        raise HostError(f"cannot open a raw socket on {link.name}: {error.strerror}") from None
    return raw


def _attach(raw: socket.socket, program: Sequence[Instruction]) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HP", len(program), ctypes.addressof(buffer))
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
