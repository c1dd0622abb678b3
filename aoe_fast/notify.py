"""The service manager's protocol: readiness, state, watchdog (sd_notify(3)), and journald's levels.

Without a service manager every call does nothing.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from typing import TextIO

_PRIORITY = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip


_PATIENCE_S = 2.0


class Notifier:
    """Tells the service manager named by NOTIFY_SOCKET, which no child inherits from then on."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        micros = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        on = micros.isdigit() and meant == str(os.getpid())
        self.watchdog = int(micros) / 1e6 / 2 if on else 0.0
        """Seconds after which ``alive`` is due again; 0: nobody waits for it."""

    @property
    def heard(self) -> bool:
        """Whether a service manager listens."""
        return bool(self._address)

    def tell(self, **words: str | int) -> None:
        """Send ``words`` as NAME=VALUE lines; a manager that is not there is no error."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # A manager that is behind is waited for, but not with what is said again soon.
            sock.settimeout(0 if "WATCHDOG" in words else _PATIENCE_S)
            sock.sendto(text.encode(), self._address)

    def ready(self, status: str) -> None:
        self.tell(READY=1, STATUS=status, MAINPID=os.getpid())

    def reloading(self) -> None:
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self, status: str) -> None:
        self.tell(STOPPING=1, STATUS=status)

    def alive(self) -> None:
        if self.watchdog:
            self.tell(WATCHDOG=1)


def to_journal(stream: TextIO) -> bool:
    """Whether ``stream`` goes to the journal: JOURNAL_STREAM names its device and inode."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


class JournalFormatter(logging.Formatter):
    """One line for each record, its priority first, as sd-daemon(3) has it; no time, no newline."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        level = _PRIORITY.get(record.levelno, 6)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"<{level}>{line}" for line in lines)


def log_to_stderr(level: int) -> None:
    """Log to stderr: with time and level for people, with priorities for the journal."""
    handler = logging.StreamHandler(sys.stderr)
    if to_journal(sys.stderr):
        handler.setFormatter(JournalFormatter())
    else:
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
