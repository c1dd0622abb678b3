"""ATA-over-Ethernet block server on raw AF_PACKET sockets, usable without pxed."""

import os

# numpy's linear algebra would start threads at its import, before a server gives up its rights
# (``privileges``): each would keep all of them, and a stack.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from aoe_fast.server import Server
from aoe_fast.store import Export
from aoe_fast.target import Target
from aoe_fast.wire import AoeError

__all__ = ["AoeError", "Export", "Server", "Target"]
