"""A raw socket for IPv6 frames, read from the event loop: what those share who hear multicasts."""

import asyncio
import socket
from collections.abc import Callable, Sequence

from pxed.net.link import Link
from pxed.net.packet import ETH_IPV6, Instruction, open_raw

_BATCH = 64


class Ear:
    """Gives ``hear`` each frame on ``link`` that ``program`` lets through, from start to close.

    ``groups``: multicast MACs to join. ``hear`` must not raise.
    """

    def __init__(
        self,
        link: Link,
        program: Sequence[Instruction],
        groups: Sequence[bytes],
        hear: Callable[[bytes], None],
    ) -> None:
        self._link = link
        self._program = program
        self._groups = groups
        self._hear = hear
        self._raw: socket.socket | None = None

    async def start(self) -> None:
        """Open the socket; HostError without the privilege."""
        self._raw = open_raw(self._link, ETH_IPV6, self._program, self._groups)
        asyncio.get_running_loop().add_reader(self._raw.fileno(), self._readable)

    async def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._raw is not None:
            asyncio.get_running_loop().remove_reader(self._raw.fileno())
            self._raw.close()
            self._raw = None

    def send(self, frame: bytes) -> None:
        """Answer; OSError if the interface does not take it."""
        if self._raw is not None:
            self._raw.send(frame)

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if self._raw is None:
                return
            try:
                frame = self._raw.recv(2048)
            except OSError:  # nothing more, or the interface went down
                return
            self._hear(frame)
