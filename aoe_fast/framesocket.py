"""AoE frames on one interface: a packet socket that hears replies to one MAC (plain Python)."""

import ctypes
import errno
import fcntl
import select
import socket
import struct
import time
from collections.abc import Iterator

from aoe_fast.frames import ETHERTYPE, InterfaceError, Reply, parse

# linux/if_packet.h; Python's socket module does not name them.
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_SO_RCVBUFFORCE = 33
_SO_ATTACH_FILTER = 26
# ldb [14]; jset FLAG_RESPONSE: what is asked of a server on this interface is not for us, and where
# there is much of it, it is not worth a copy of each frame either.
_RESPONSES = struct.pack(
    "HBBI" * 4, 0x30, 0, 0, 14, 0x45, 0, 1, 0x08, 0x06, 0, 0, 0x40000, 0x06, 0, 0, 0
)
_RECEIVE_BUFFER = 8 << 20


class FrameSocket:
    """Requests out, replies to ``mac`` in, until ``close``. Not for several threads.

    source_mac: another MAC to send from (the interface then listens promiscuously).
    InterfaceError: no such interface, no privilege, or the link is down.
    """

    def __init__(self, interface: str, source_mac: bytes | None = None) -> None:
        if source_mac is not None and (len(source_mac) != 6 or source_mac[0] & 1):
            raise ValueError("source_mac: 6 bytes of a single machine's address")
        self.interface = interface
        try:
            # Protocol 0 until the filter is there: nothing comes before.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except PermissionError:
            raise InterfaceError("raw sockets need CAP_NET_RAW: run as root") from None
        try:
            self._open(source_mac)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            if error.errno == errno.ENODEV:
                reason = "no such interface; `ip link` lists them"
            raise InterfaceError(f"{interface}: {reason}") from None
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def _open(self, source_mac: bytes | None) -> None:
        code = ctypes.create_string_buffer(_RESPONSES, len(_RESPONSES))
        program = struct.pack("HP", len(_RESPONSES) // 8, ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self._socket.bind((self.interface, ETHERTYPE))
        self.mac: bytes = source_mac or self._socket.getsockname()[4]
        self.mtu = _mtu(self._socket, self.interface)
        if source_mac is not None:
            membership = struct.pack(
                "iHH8s",
                socket.if_nametoindex(self.interface),
                _PACKET_MR_PROMISC,
                0,
                b"",
            )
            self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)

    def close(self) -> None:
        """Give the socket up; closing twice is fine."""
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Send one frame, or lose it where a queue is full; InterfaceError if there is no link."""
        try:
            self._socket.send(frame)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # a full queue loses a frame: that is repeated
                raise InterfaceError(
                    f"{self.interface}: cannot send ({error.strerror}): is the link up?"
                ) from None

    def receive_until(self, end: float, *, once: bool = False) -> Iterator[Reply]:
        """Replies to us until ``end``; with ``once``, only until there is nothing more at hand."""
        while True:
            left = end - time.monotonic()
            # Rounded up: poll(0) until the deadline would spin.
            if not self._poll.poll(max(0, int(left * 1000) + 1)) and left <= 0:
                return
            got = False
            while True:
                try:
                    frame = self._socket.recv(65536, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno == errno.ENETDOWN:
                        raise InterfaceError(f"{self.interface}: the link went down") from None
                    raise InterfaceError(f"{self.interface}: {error.strerror}") from None
                reply = parse(frame)
                if reply is not None and reply.dst == self.mac:
                    got = True
                    yield reply
            if (once and got) or time.monotonic() >= end:
                return


def _mtu(sock: socket.socket, interface: str) -> int:
    """The interface's MTU (netdevice(7), SIOCGIFMTU)."""
    request = struct.pack("16si12x", interface.encode(), 0)
    answer = fcntl.ioctl(sock, 0x8921, request)
    return int(struct.unpack_from("16si", answer)[1])
