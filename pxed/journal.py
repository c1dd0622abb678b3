"""Leases that were promised and are not in the database yet: a short append-only file.

The database is written by a thread, some milliseconds later. A machine whose ACK is out may use its
address by then, and one that is just loading its boot file answers no ARP probe; so each change of
a lease goes to the kernel here first, before anything is sent: one write call, no wait for the
disk.
"""

import os
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from pxed.dhcp.lease import Lease, State
from pxed.errors import HostError
from pxed.mac import Mac, parse_mac

LARGE = 1 << 20  # bytes after which it is written anew with what is still open


class Journal:
    """The file ``path``, made if it is missing; ``leases`` is what an earlier server left in it.

    HostError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.leases = _read(path.read_bytes()) if path.exists() else []
            self._fd = self._open(path)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}: make room, or move it away") from error
        self.size = os.fstat(self._fd).st_size

    def add(self, lease: Lease) -> None:
        """Append one; it outlives kill -9 when this returns. HostError if the disk refuses."""
        try:
            self.size += os.write(self._fd, _line(lease))
        except OSError as error:
            raise HostError(f"{self.path}: cannot write: {error.strerror}") from error

    def keep(self, still: Iterable[Lease]) -> None:
        """All but ``still`` are in the database: forget the rest. HostError."""
        left = b"".join(map(_line, still))
        try:
            if not left:
                os.ftruncate(self._fd, 0)
            elif self.size > LARGE:
                # Whoever kills us in between finds the old file or the new one.
                fresh = self.path.with_name(f".{self.path.name}")
                fresh.unlink(missing_ok=True)
                fd = self._open(fresh)
                os.write(fd, left)
                fresh.rename(self.path)
                os.close(self._fd)
                self._fd = fd
            else:
                return
        except OSError as error:
            raise HostError(f"{self.path}: cannot write: {error.strerror}") from error
        self.size = len(left)

    def close(self) -> None:
        """Closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _line(lease: Lease) -> bytes:
    return f"{lease.mac} {lease.ip} {lease.state} {lease.expires!r}\n".encode()


def _read(data: bytes) -> list[Lease]:
    """The last word on each address; lines that a crash of the machine damaged are left out."""
    found: dict[IPv4Address, Lease] = {}
    for line in data.decode("ascii", "replace").splitlines():
        words = line.split(" ")
        try:
            mac, ip, state, expires = words
            lease = Lease(Mac(parse_mac(mac)), IPv4Address(ip), State(state), float(expires))
        except ValueError:
            continue
        found.pop(lease.ip, None)
        found[lease.ip] = lease
    return list(found.values())
