"""This terminal as a client's serial console, until Ctrl-]."""

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

from pxed.lab.qemu import Client

ESCAPE = b"\x1d"  # Ctrl-]


def attach(client: Client) -> None:
    """Show what the console says, send what is typed; ends at Ctrl-], end of input or power-off."""
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    with _raw(stdin), client.serial_log.open("rb") as log:
        log.seek(0, os.SEEK_END)
        client.send(b"\n")
        while client.running:
            ready, _, _ = select.select([stdin], [], [], 0.02)
            if ready:
                typed = os.read(stdin, 1024)
                if not typed or ESCAPE in typed:
                    return
                client.send(typed)
            said = log.read()
            if said:
                os.write(stdout, said)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """The terminal passes every key on; nothing happens when it is none (a pipe, in tests)."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
