"""One address of one machine, and the range that a subnet has without being told. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from pxed.errors import UsageError
from pxed.mac import Mac


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
