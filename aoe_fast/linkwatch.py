"""Interfaces that come, go and change, from the kernel's rtnetlink(7) messages; stdlib only."""

import contextlib
import errno
import socket
import struct

_NETLINK_ROUTE = 0
_RTMGRP_LINK = 1
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_IFNAME = 3
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")

EVERY = "*"
"""Stands for every interface: messages were lost."""


class LinkWatch:
    """Names of interfaces about which the kernel has news; poll ``fileno``, then ``take``."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP_LINK))

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> set[str]:
        """The names in what has arrived; EVERY among them if the kernel had to drop messages."""
        names: set[str] = set()
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return names
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                names.add(EVERY)
                continue
            names |= changed_links(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def changed_links(data: bytes) -> set[str]:
    """Interface names in a run of rtnetlink messages (RTM_NEWLINK, RTM_DELLINK)."""
    names = set()
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= size <= len(data) - at:
            break
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            names |= _name(data[at + _HEADER.size + _LINK.size : at + size])
        at += (size + 3) & ~3
    return names


def _name(attributes: bytes) -> set[str]:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if not _ATTRIBUTE.size <= size <= len(attributes) - at:
            break
        if kind == _IFLA_IFNAME:
            raw = attributes[at + _ATTRIBUTE.size : at + size]
            return {raw.rstrip(b"\0").decode("utf-8", "replace")}
        at += (size + 3) & ~3
    return set()
