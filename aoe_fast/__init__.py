"""ATA-over-Ethernet block server on raw AF_PACKET sockets, usable without pxed."""

from aoe_fast.server import Server
from aoe_fast.store import Export
from aoe_fast.target import Target
from aoe_fast.wire import AoeError

__all__ = ["AoeError", "Export", "Server", "Target"]
