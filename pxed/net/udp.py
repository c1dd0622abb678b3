"""UDP sockets that are bound to one interface, with errors that say what to do."""

import errno
import socket

from aoe_fast.buffers import widen
from pxed.errors import HostError
from pxed.net.link import Link

# A room that is switched on at once must fit: the usual 208 KiB hold 166 DISCOVERs.
_RECEIVE_BUFFER = 4 << 20


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
