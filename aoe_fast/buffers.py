"""Socket buffers beyond net.core.{r,w}mem_max, for a server that has given up CAP_NET_ADMIN.

A room that is switched on at once fills the kernel's usual 208 KiB in milliseconds. Making a
buffer larger takes CAP_NET_ADMIN, which could also change every route and address. So one small
process, forked while we are still root, keeps that capability; it can do nothing but enlarge the
buffer of a socket that it is handed, up to a fixed limit, and it ends with us.
"""

import contextlib
import os
import pwd
import signal
import socket
import threading

from aoe_fast import privileges
from aoe_fast.privileges import Capability

LIMIT = 16 << 20
"""No buffer becomes larger than this many bytes."""

_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # <asm-generic/socket.h>
_lock = threading.Lock()
_helper: socket.socket | None = None


def widen(sock: socket.socket, option: int, size: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF to ``size`` bytes, or as near as this process may."""
    size = min(size, LIMIT)
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _FORCE[option], size)
        return
    if not _ask(sock, option, size):
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def start_helper(user: "pwd.struct_passwd | None" = None) -> None:
    """Fork the helper, as ``user``; only with CAP_NET_ADMIN, before the first thread, and once."""
    global _helper
    if _helper is not None or Capability.NET_ADMIN not in privileges.held():
        return
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            _run(its, user)
            code = 0
        finally:
            os._exit(code)
    its.close()
    ours.settimeout(1.0)
    _helper = ours


def _ask(sock: socket.socket, option: int, size: int) -> bool:
    """Whether the helper did it."""
    global _helper
    with _lock:
        if _helper is None:
            return False
        try:
            message = bytes([option]) + size.to_bytes(4, "big")
            socket.send_fds(_helper, [message], [sock.fileno()])
            return _helper.recv(1) == b"\1"
        except OSError:
            _helper.close()  # it is gone, or an answer would come out of turn
            _helper = None
            return False


def _run(channel: socket.socket, user: "pwd.struct_passwd | None") -> None:
    """Enlarge what comes until nobody is there to ask."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep = channel.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):  # whoever reads our output to its end need not wait for this one
        os.dup2(nothing, standard)
    privileges.reduce({Capability.NET_ADMIN}, user)
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 16, 1)
        if not message:
            return
        try:
            good = len(message) == 5 and len(fds) == 1 and message[0] in _FORCE
            if good:
                size = min(int.from_bytes(message[1:], "big"), LIMIT)
                with socket.socket(fileno=fds.pop()) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, _FORCE[message[0]], size)
            channel.send(b"\1" if good else b"\0")
        except OSError:
            channel.send(b"\0")
        finally:
            for fd in fds:
                os.close(fd)
