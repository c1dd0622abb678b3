"""UDP sockets that are bound to one interface, with errors that say what to do."""

import contextlib
import errno
import socket
import sys

from aoe_fast.buffers import widen
from pxed.errors import HostError
from pxed.net.link import Link

# A room that is switched on at once must fit: the usual 208 KiB hold 166 DISCOVERs.
_RECEIVE_BUFFER = 4 << 20
_SO_MEMINFO, _SK_MEMINFO_DROPS = 55, 8  # <asm-generic/socket.h>, <linux/sock_diag.h>


def bind_udp(
    link: Link,
    port: int,
    in_use: str,
    ip: str = "",
    *,
    shared: bool = False,
    room: int = _RECEIVE_BUFFER,
) -> socket.socket:
    """A non-blocking UDP socket on ``port`` of ``link``; ``in_use`` is advice for a taken port.

    ``shared``: beside others of ours on that port that allow it (SO_REUSEADDR).
    ``room``: bytes of its receive buffer; 0 leaves that to the system.

    HostError, one line: port in use, no privilege, address or interface gone.
    """
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if room:
            widen(udp, socket.SO_RCVBUF, room)
        if shared:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.bind((ip, port))
    except OSError as error:
        udp.close()
        raise _explained(error, link, port, in_use) from None
    return udp


def dropped(udp: socket.socket | None) -> int:
    """How many packets found the socket's buffer full; 0 for a socket that is not there."""
    if udp is None:
        return 0
    size = 4 * (_SK_MEMINFO_DROPS + 1)
    with contextlib.suppress(OSError):
        said = udp.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
        return int.from_bytes(said[-4:], sys.byteorder) if len(said) == size else 0
    return 0


def _explained(error: OSError, link: Link, port: int, in_use: str) -> HostError:
    what = f"port {port}/udp"
    match error.errno:
        case errno.EADDRINUSE:
            return HostError(f"{what} is in use on {link.name} {in_use}")
        case errno.EACCES | errno.EPERM:
            return HostError(f"{what} needs root or CAP_NET_BIND_SERVICE and CAP_NET_RAW")
        case errno.ENODEV:
            return HostError(f"{what}: the interface {link.name} is gone")
    return HostError(f"{what} on {link.name}: {error.strerror}")
