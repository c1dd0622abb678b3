"""How many requests each client may have out, so that all of them fit the rings. Sans-IO.

Linux reads bufcnt again from every config reply, also from one that it did not ask for: so the
number can be lowered while clients run (AoE section 3.2; drivers/block/aoe, aoecmd_cfg_rsp).
"""

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from aoe_fast.admin import read_settings
from aoe_fast.store import Export
from aoe_fast.wire import sectors_per_frame

LEAST = 2
"""A window of bufcnt / 2 must not be 0."""

_FEW = 8
_STRANGERS = 512

_HOLD_S = 30.0
_HEADER = struct.Struct("!6s6sHBBHBBI")
_CONFIG = struct.Struct("!HHBBH")


class Throttle:
    """The queue depth that one worker advertises; ``update`` it every second."""

    def __init__(self, bufcnt: int, ring_frames: int, write_frames: int) -> None:
        self.bufcnt = bufcnt
        self.value = bufcnt
        self._ring_frames = ring_frames
        self._write_frames = write_frames
        self._ceiling = bufcnt
        self._calm_since = 0.0

    def update(self, now: float, clients: int, writers: int, lost: int) -> bool:
        """Take in what is; True if the value fell, so that clients should hear of it now.

        Powers of two below bufcnt, so that a client more or less changes nothing. Frames lost in
        spite of it halve the value; each half minute without a loss doubles it again.
        """
        before = self.value
        if lost:
            self._ceiling = max(LEAST, self.value // 2)
            self._calm_since = now
        elif self._ceiling < self.bufcnt and now - self._calm_since >= _HOLD_S:
            self._ceiling = min(self.bufcnt, 2 * self._ceiling)
            self._calm_since = now
        fits = min(self._ring_frames // max(1, clients), self._write_frames // max(1, writers))
        if fits < self.bufcnt:
            fits = 1 << max(1, fits.bit_length() - 1)
        self.value = max(LEAST, min(fits, self._ceiling, self.bufcnt))
        return self.value < before


def count_clients(requests: npt.NDArray[np.uint64]) -> int:
    """How many clients a worker has, from how often each address has asked.

    Those that asked seldom may be made up: they count as 512 at most, so that a flood of them does
    not take the queue depth away from the machines that work.
    """
    few = int(np.count_nonzero(requests <= _FEW))
    return len(requests) - few + min(few, _STRANGERS)


def announcements(
    mac: bytes, own_mac: bytes, mtu: int, bufcnt: int, view: Mapping[tuple[int, int], Export]
) -> list[bytes]:
    """Config replies that tell ``mac`` of ``bufcnt`` for every device that it may see."""
    frames = []
    for (shelf, slot), export in view.items():
        settings = read_settings(export)
        if settings.allowed and mac not in settings.allowed:
            continue
        head = _HEADER.pack(mac, own_mac, 0x88A2, 0x18, 0, shelf, slot, 1, 0)
        body = _CONFIG.pack(bufcnt, 1, sectors_per_frame(mtu), 0x10, len(settings.config))
        frames.append((head + body + settings.config).ljust(60, b"\0"))
    return frames
