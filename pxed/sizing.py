"""What a room needs of its server: link, rings, memory, cores, from costs that were measured. Pure.

The costs are those of one machine (two virtual CPUs of an AMD EPYC, Linux 6.18, veth): other
machines differ by a factor of two, a network card's driver adds its own. They say what limits a
room first, and roughly how long it takes to boot.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

# Every figure below is of runs alone on the machine; docs/performance.md ("Sizing") has them.

# Measured by `python -m bench aoe` (rows read-1k and read-8k, "ours": 1,816 and 3,229): CPU of the
# server for one read, its softirq work included. A straight line between 2 and 16 sectors.
_READ_1K_NS = 1_800
_READ_8K_NS = 3_300
READ_SECTOR_NS = (_READ_8K_NS - _READ_1K_NS) / 14
READ_NS = _READ_1K_NS - 2 * READ_SECTOR_NS

# Measured by `python -m bench storm` with 10, 200 and 1,000 clients (6.3, 5.7 and 4.7 ms): CPU for
# each client less its reads, so two DHCP exchanges, iPXE by TFTP in 1,432-byte blocks, the
# midlayer, the client's record and events.
CLIENT_S = 0.006

# Measured by `python -m bench storm --clients 10,1000`: anonymous memory after the storm, less the
# rings, at 10 clients (50.8 MiB) and for each of the 990 more (33 KiB).
MEMORY_BASE = 52 << 20
MEMORY_CLIENT = 36 << 10

RING_FRAME = 128  # bytes of a request in the receive ring (aoe_fast.ring)
WRITE_FRAMES = 4096
LEAST_RING, MOST_RING = 2048, 1 << 20

# Not measured: what a switch, two cards and an interrupt at either end take on a real segment. iPXE
# has one request of 1 KiB on its way at a time, so this alone bounds one seat's start.
ROUND_TRIP_S = 100e-6

HEAD, BETWEEN = 36, 24  # bytes of an AoE reply's headers; preamble, checksum and gap of Ethernet

# What a Debian 12 seat with systemd reads until its login prompt (`python -m bench record --image
# debian`): kernel and initrd through iPXE, then its root.
LOADED, READ = 17 << 20, 20 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """What is asked: ``link`` in bit/s, ``loaded`` and ``read`` in bytes for each client."""

    clients: int
    link: float
    mtu: int = 1500
    workers: int = 1
    bufcnt: int = 64
    loaded: int = LOADED
    read: int = READ


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer; seconds, bytes and numbers. ``limit``: what the storm waits for."""

    storm_s: float
    limit: str
    link_s: float
    cpu_s: float
    one_client_s: float
    link_bytes: int
    requests: int
    ring_frames: int
    ring_bytes: int
    memory: int
    page_cache: int
    cores: int
    max_clients: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sectors_of(mtu: int) -> int:
    """Sectors in one frame of the kernel's, as the server offers them at this MTU."""
    fits = (mtu - HEAD) // 512
    return 16 if fits >= 16 else 8 if fits >= 8 else fits


def read_ns(sectors: int) -> float:
    """The server's CPU time for one read."""
    return READ_NS + READ_SECTOR_NS * sectors


def measure(room: Room) -> Sizing:
    """What this room means if all of it is switched on at once."""
    sectors = sectors_of(room.mtu)
    singles = -(-room.loaded // 1024)
    reads = -(-room.read // (512 * sectors))
    each = room.loaded + room.read + (singles + reads) * (HEAD + BETWEEN)
    link_bytes = room.clients * each
    link_s = link_bytes * 8 / room.link
    cpu_each = (singles * read_ns(2) + reads * read_ns(sectors)) / 1e9 + CLIENT_S
    cpu_s = room.clients * cpu_each
    one_s = singles * ROUND_TRIP_S + reads * ROUND_TRIP_S / room.bufcnt
    takes = {"the link": link_s, "the CPU": cpu_s / room.workers, "one client's own pace": one_s}
    limit = max(takes, key=lambda name: takes[name])
    share = room.clients if room.workers == 1 else -(-3 * room.clients // (2 * room.workers))
    frames = 1 << max(LEAST_RING.bit_length() - 1, (share * room.bufcnt - 1).bit_length())
    frames = min(frames, MOST_RING)
    write_bytes = -(-(room.mtu + 14 + 80) // 128) * 128
    ring = room.workers * (frames * RING_FRAME + min(frames, WRITE_FRAMES) * write_bytes)
    return Sizing(
        storm_s=takes[limit],
        limit=limit,
        link_s=link_s,
        cpu_s=cpu_s,
        one_client_s=one_s,
        link_bytes=link_bytes,
        requests=room.clients * (singles + reads),
        ring_frames=frames,
        ring_bytes=ring,
        memory=MEMORY_BASE + room.clients * MEMORY_CLIENT + ring,
        page_cache=room.loaded + room.read,
        # So many that the link, not the CPU, is what the storm waits for; one more for the rest.
        cores=max(1, math.ceil(cpu_s / max(link_s, one_s))) + 1,
        max_clients=room.clients,
    )
