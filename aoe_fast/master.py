"""Why nothing is heard on an interface: no link, or another one takes every frame; stdlib only."""

import socket
import struct
import sys
from collections.abc import Iterator

_RTM_NEWLINK, _RTM_GETLINK, _NLM_F_REQUEST = 16, 18, 1
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_SLAVE_KIND = 10, 18, 4
_IFF_UP, _IFF_LOWER_UP = 1, 1 << 16
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x3FFF
_HEARS = "vrf"  # gives its ports a routing table of their own, and takes no frame
_ROLES = {"bridge": "a port of the bridge", "bond": "a part of the bond", "team": "a part of"}


def deaf(name: str) -> str:
    """Why a server on this interface would hear nothing, and what to serve; empty if it hears.

    Also empty for an interface that is not there, or where netlink is not to be had.
    """
    try:
        index, kind = master_in(_link(name))
        master = socket.if_indextoname(index) if index else ""
    except OSError:
        return ""
    if not master or kind == _HEARS:
        return ""
    role = _ROLES.get(kind, "a port of")
    return (
        f"{name} is {role} {master}, which takes every frame that arrives there: "
        f"nothing will be heard: serve {master}"
    )


def unplugged(name: str) -> str:
    """Why nothing is heard on this interface for now: down, no carrier; empty if it has a link.

    Also empty for an interface that is not there, or where netlink is not to be had.
    """
    try:
        message = _link(name)
        _, _, _, flags, _ = _LINK.unpack_from(message, _HEADER.size)
    except (OSError, struct.error):
        return ""
    if not flags & _IFF_UP:
        return f"{name} is down: nothing is heard until it is up: ip link set {name} up"
    if not flags & _IFF_LOWER_UP:
        return f"{name} has no link: nothing is heard until it has: look at cable and switch"
    return ""


def _link(name: str) -> bytes:
    """What the kernel tells of this interface: one RTM_NEWLINK."""
    index = socket.if_nametoindex(name)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.settimeout(1.0)
        request = _LINK.pack(0, 0, index, 0, 0)
        head = (_HEADER.size + len(request), _RTM_GETLINK, _NLM_F_REQUEST, 1, 0)
        netlink.sendto(_HEADER.pack(*head) + request, (0, 0))
        return netlink.recv(65536)


def master_in(message: bytes) -> tuple[int, str]:
    """Index of the master and what kind of port it has, of an RTM_NEWLINK; (0, ""): none."""
    if len(message) < _HEADER.size or _HEADER.unpack_from(message)[1] != _RTM_NEWLINK:
        return 0, ""
    index, kind = 0, ""
    for key, value in _attributes(message[_HEADER.size + _LINK.size :]):
        if key == _IFLA_MASTER and len(value) >= 4:
            index = int.from_bytes(value[:4], sys.byteorder)
        elif key == _IFLA_LINKINFO:
            for inner, text in _attributes(value):
                if inner == _IFLA_INFO_SLAVE_KIND:
                    kind = text.rstrip(b"\0").decode("utf-8", "replace")
    return index, kind


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= size <= len(data) - at:
            return
        yield kind & _NESTED, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
