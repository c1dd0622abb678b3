"""DHCP messages: bytes to ``Message`` and back (RFC 2131, 2132, 3396). Pure.

``decode`` parses any bytes or raises ``DhcpError``, and nothing else.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address

from pxed.errors import PxedError
from pxed.mac import Mac, mac_bytes, mac_text

SERVER_PORT = 67
CLIENT_PORT = 68
BOOT_PORT = 4011  # PXE 2.1 section 2.2.3: the boot service of a proxy

BROADCAST_FLAG = 0x8000  # RFC 2131 section 2
NOWHERE = IPv4Address(0)

_COOKIE = b"\x63\x82\x53\x63"  # RFC 2131 section 3
_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_OPTIONS_AT = _HEADER.size + len(_COOKIE)
_UDP_IP = 28  # headers that the limit of option 57 may or may not include: count them
_MIN_LIMIT = 576  # RFC 2132 section 9.10
_MIN_BYTES = 300  # RFC 1542 section 2.1: relays and old ROMs drop shorter messages
_PAD, _OVERLOAD, _END = 0, 52, 255


class DhcpError(PxedError):
    """Bytes that are no DHCP message, or a message that does not fit into its limit."""


class Op(IntEnum):
    """RFC 2131 section 2."""

    REQUEST = 1
    REPLY = 2


class Type(IntEnum):
    """RFC 2132 section 9.6: values of option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Opt(IntEnum):
    """Option codes that pxed reads or writes. RFC 2132 unless another source is named."""

    SUBNET_MASK = 1  # section 3.3
    ROUTER = 3  # section 3.5
    DNS = 6  # section 3.8
    HOST_NAME = 12  # section 3.14
    ROOT_PATH = 17  # section 3.19
    MTU = 26  # section 5.1
    BROADCAST = 28  # section 5.3
    VENDOR = 43  # section 8.4
    REQUESTED_IP = 50  # section 9.1
    LEASE_TIME = 51  # section 9.2
    OVERLOAD = 52  # section 9.3
    TYPE = 53  # section 9.6
    SERVER_ID = 54  # section 9.7
    PARAMETERS = 55  # section 9.8
    TEXT = 56  # section 9.9
    MAX_SIZE = 57  # section 9.10
    T1 = 58  # section 9.11
    T2 = 59  # section 9.12
    VENDOR_CLASS = 60  # section 9.13
    CLIENT_ID = 61  # section 9.14
    TFTP_SERVER = 66  # section 9.4
    BOOT_FILE = 67  # section 9.5
    USER_CLASS = 77  # RFC 3004 section 4
    RELAY = 82  # RFC 3046 section 2
    ARCH = 93  # RFC 4578 section 2.1
    NDI = 94  # RFC 4578 section 2.2
    UUID = 97  # RFC 4578 section 2.3
    IPXE = 175  # Etherboot: encapsulated options of iPXE


@dataclass(slots=True)
class Message:
    """One DHCP message; ``sname`` and ``file`` without trailing NULs, options in wire order."""

    op: int
    xid: int
    chaddr: Mac
    secs: int = 0
    flags: int = 0
    hops: int = 0
    ciaddr: IPv4Address = NOWHERE
    yiaddr: IPv4Address = NOWHERE
    siaddr: IPv4Address = NOWHERE
    giaddr: IPv4Address = NOWHERE
    sname: bytes = b""
    file: bytes = b""
    options: dict[int, bytes] = field(default_factory=dict)

    @property
    def type(self) -> int | None:
        """Option 53, or None: a BOOTP message."""
        value = self.options.get(Opt.TYPE, b"")
        return value[0] if len(value) == 1 else None

    @property
    def broadcast(self) -> bool:
        """The client cannot receive unicast yet (RFC 2131 section 4.1)."""
        return bool(self.flags & BROADCAST_FLAG)

    @property
    def max_size(self) -> int:
        """The longest IP datagram that the sender of this message takes (option 57)."""
        value = self.options.get(Opt.MAX_SIZE, b"")
        return max(_MIN_LIMIT, int.from_bytes(value, "big")) if len(value) == 2 else _MIN_LIMIT

    def address(self, code: int) -> IPv4Address | None:
        """The option as one address; None if it is missing or has another length."""
        value = self.options.get(code, b"")
        return IPv4Address(value) if len(value) == 4 else None

    def asks(self, code: int) -> bool:
        """Whether option 55 names ``code``."""
        return code in self.options.get(Opt.PARAMETERS, b"")


def decode(data: bytes) -> Message:
    """The message in ``data``; DhcpError if it is none, or not one from an Ethernet machine."""
    if len(data) < _OPTIONS_AT:
        raise DhcpError(f"a DHCP message has {_OPTIONS_AT} bytes or more, not {len(data)}")
    head = _HEADER.unpack_from(data)
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr = head[:12]
    sname, file = head[12:]
    if data[_HEADER.size : _OPTIONS_AT] != _COOKIE:
        raise DhcpError("no DHCP magic cookie: plain BOOTP, or not DHCP at all")
    if op not in (Op.REQUEST, Op.REPLY):
        raise DhcpError(f"op is {op}, neither request nor reply")
    if htype != 1 or hlen != 6:
        raise DhcpError(f"hardware type {htype} with {hlen} bytes is not Ethernet")
    if chaddr[0] & 1 or not any(chaddr[:6]):
        raise DhcpError(f"chaddr {mac_text(chaddr)} is not a machine's address")
    options: dict[int, bytes] = {}
    _parse(data[_OPTIONS_AT:], options)
    overload = options.pop(_OVERLOAD, b"\0")
    if len(overload) != 1 or overload[0] > 3:
        raise DhcpError(f"option 52 is {overload.hex()}, not 1, 2 or 3")
    if overload[0] & 1:  # RFC 2131 section 4.1: file first, then sname
        _parse(file, options)
        file = b""
    if overload[0] & 2:
        _parse(sname, options)
        sname = b""
    return Message(
        op=op,
        xid=xid,
        chaddr=mac_text(chaddr),
        secs=secs,
        flags=flags,
        hops=hops,
        ciaddr=IPv4Address(ciaddr),
        yiaddr=IPv4Address(yiaddr),
        siaddr=IPv4Address(siaddr),
        giaddr=IPv4Address(giaddr),
        sname=sname.split(b"\0", 1)[0],
        file=file.split(b"\0", 1)[0],
        options=options,
    )


def _parse(area: bytes, into: dict[int, bytes]) -> None:
    """Add the options of ``area``; a repeated code continues the value (RFC 3396 section 7)."""
    at = 0
    while at < len(area):
        code = area[at]
        if code == _END:
            return
        at += 1
        if code == _PAD:
            continue
        if at >= len(area) or at + 1 + area[at] > len(area):
            raise DhcpError(f"option {code} runs past the end of the message")
        size = area[at]
        into[code] = into.get(code, b"") + area[at + 1 : at + 1 + size]
        at += 1 + size


def encode(message: Message, max_size: int = _MIN_LIMIT) -> bytes:
    """The bytes of ``message``, 300 or more; the IP datagram stays within ``max_size``.

    Options that do not fit spill into ``file`` and ``sname`` where those are empty (option 52).
    DhcpError if even that is too little, or a header field is too long.
    """
    if len(message.sname) > 64 or len(message.file) > 128:
        raise DhcpError("sname takes 64 bytes and file 128")
    pieces = list(_pieces(message.options))
    room = max(max_size, _MIN_LIMIT) - _UDP_IP - _OPTIONS_AT
    sname, file, overload = message.sname, message.file, 0
    if sum(map(len, pieces)) + 1 <= room:
        main = b"".join(pieces)
    else:
        main, pieces = _fill(pieces, room - 4)  # option 52 itself, and the end
        if pieces and not file:
            file, pieces = _fill(pieces, 128)
            file += bytes((_END,)) if len(file) < 128 else b""
            overload |= 1
        if pieces and not sname:
            sname, pieces = _fill(pieces, 64)
            sname += bytes((_END,)) if len(sname) < 64 else b""
            overload |= 2
        if pieces:
            raise DhcpError(
                f"the options do not fit into the {max_size} bytes that the client takes"
            )
        main += bytes((_OVERLOAD, 1, overload))
    head = _HEADER.pack(
        message.op,
        1,
        6,
        message.hops,
        message.xid,
        message.secs,
        message.flags,
        message.ciaddr.packed,
        message.yiaddr.packed,
        message.siaddr.packed,
        message.giaddr.packed,
        mac_bytes(message.chaddr),
        sname,
        file,
    )
    return (head + _COOKIE + main + bytes((_END,))).ljust(_MIN_BYTES, b"\0")


def _pieces(options: Mapping[int, bytes]) -> Iterable[bytes]:
    """Each option as code, length, value; values over 255 bytes in parts (RFC 3396 section 6)."""
    for code, value in options.items():
        if not 0 < code < _END or code == _OVERLOAD:
            raise DhcpError(f"{code} is no code of an option that can be set")
        for at in range(0, len(value) or 1, 255):
            part = value[at : at + 255]
            yield bytes((code, len(part))) + part


def _fill(pieces: list[bytes], room: int) -> tuple[bytes, list[bytes]]:
    """As many pieces as fit into ``room`` in their order (no later one overtakes), and the rest."""
    took = b""
    for index, piece in enumerate(pieces):
        if len(took) + len(piece) > room:
            return took, pieces[index:]
        took += piece
    return took, []


def encapsulate(items: Mapping[int, bytes], *, end: bool = True) -> bytes:
    """Options inside an option: the value of option 43 or 175 (RFC 2132 section 8.4)."""
    parts = []
    for code, value in items.items():
        if not 0 < code < _END or len(value) > 255:
            raise DhcpError(f"encapsulated option {code} with {len(value)} bytes cannot be written")
        parts.append(bytes((code, len(value))) + value)
    return b"".join(parts) + (b"\xff" if end else b"")


def decapsulate(raw: bytes) -> dict[int, bytes]:
    """The options inside option 43 or 175; what is truncated is left out, nothing is raised."""
    items: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(raw) and raw[at] != _END:
        code = raw[at]
        if code == _PAD:
            at += 1
            continue
        size = raw[at + 1]
        if at + 2 + size > len(raw):
            break
        items[code] = raw[at + 2 : at + 2 + size]
        at += 2 + size
    return items
