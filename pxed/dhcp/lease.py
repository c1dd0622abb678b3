"""One address of one machine, and the addresses that there are for machines. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from pxed.config import Range
from pxed.errors import UsageError
from pxed.mac import Mac

_MAX_POOL = 1 << 16


class State(StrEnum):
    """What a lease's address is doing."""

    OFFERED = "offered"
    BOUND = "bound"
    RELEASED = "released"  # free, but the machine's home
    DECLINED = "declined"  # in quarantine


@dataclass(frozen=True, slots=True)
class Lease:
    """One address of one machine until ``expires`` (seconds, the caller's clock)."""

    mac: Mac
    ip: IPv4Address
    state: State
    expires: float


@dataclass(frozen=True, slots=True)
class Pool:
    """``first`` to ``last`` without ``exclude``, all of which lie between them.

    UsageError if that is upside down or too large.
    """

    first: IPv4Address
    last: IPv4Address
    exclude: frozenset[IPv4Address] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.width <= _MAX_POOL:
            raise UsageError(f"range {self} must have 1 to {_MAX_POOL} addresses")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.width - len(self.exclude)

    def __contains__(self, ip: object) -> bool:
        return isinstance(ip, IPv4Address) and (
            self.first <= ip <= self.last and ip not in self.exclude
        )

    @property
    def width(self) -> int:
        """How many addresses there are from the first to the last."""
        return int(self.last) - int(self.first) + 1

    def at(self, offset: int) -> IPv4Address:
        """The address so far into it, excluded ones among them; beyond its end it begins anew."""
        return self.first + offset % self.width

    def around(self, offset: int) -> Iterator[IPv4Address]:
        """Every address but the excluded ones, from there on."""
        width = self.width
        for step in range(width):
            ip = self.first + (offset + step) % width
            if ip not in self.exclude:
                yield ip


def carve(network: IPv4Network, taken: Collection[IPv4Address]) -> tuple[IPv4Address, IPv4Address]:
    """A range for a subnet that has none configured: its upper half, 1024 addresses at most.

    UsageError if the subnet has no address left for a client.
    """
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    size = last - first + 1
    if size - sum(1 for ip in taken if ip in network) < 1:
        raise UsageError(f"{network} has no address for clients: set [dhcp] range")
    half = min((size + 1) // 2, 1024)
    low = last - half + 1
    if all(IPv4Address(n) in taken for n in range(low, last + 1)):
        low = first
    return IPv4Address(low), IPv4Address(last)


def ends(
    wanted: Range | None, network: IPv4Network, taken: Collection[IPv4Address], interface: str
) -> tuple[IPv4Address, IPv4Address]:
    """The first and last address to lease: those of ``wanted``, else as ``carve`` does.

    UsageError if one is not in the subnet of ``interface``.
    """
    if wanted is None:
        return carve(network, taken)
    if wanted.first not in network or wanted.last not in network:
        raise UsageError(
            f"[dhcp] range = {wanted}: must lie in {network}, the subnet of {interface}"
        )
    return wanted.first, wanted.last
