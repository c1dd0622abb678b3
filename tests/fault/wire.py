"""A wire that loses, doubles, reorders, delays, damages and cuts frames, as its seed says.

Sans-IO and on a clock of its own, so that a minute of a bad link takes milliseconds: what is put in
at one time comes out at others. Both ends of a protocol are joined by two of these.
"""

import heapq
import itertools
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Chances from 0 to 1 for each frame; ``delay`` in seconds, up to; ``mtu`` in bytes.

    ``checked``: the receiver's card sees by the checksum that a frame is damaged, and drops it.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    checked: bool = True
    mtu: int = 9014


class Wire:
    """One direction. The same seed and the same frames give the same faults."""

    def __init__(self, fault: Fault, seed: int) -> None:
        self.fault = fault
        self._chance = random.Random(seed)
        self._order = itertools.count()
        self._out: list[tuple[float, int, bytes]] = []
        self.counts = dict.fromkeys(("sent", "dropped", "doubled", "damaged", "too_long"), 0)

    def send(self, frame: bytes, now: float) -> None:
        """Put a frame in at ``now``."""
        self.counts["sent"] += 1
        if len(frame) > self.fault.mtu:
            self.counts["too_long"] += 1  # a switch says nothing about it
            return
        copies = 1
        if self._happens(self.fault.drop):
            self.counts["dropped"] += 1
            copies = 0
        elif self._happens(self.fault.duplicate):
            self.counts["doubled"] += 1
            copies = 2
        for _ in range(copies):
            data = frame
            if self._happens(self.fault.corrupt):
                self.counts["damaged"] += 1
                if self.fault.checked:
                    continue
                at = self._chance.randrange(len(data))
                damaged = bytearray(data)
                damaged[at] ^= 1 << self._chance.randrange(8)
                data = bytes(damaged)
            at_time = now + 1e-6 + self._chance.random() * self.fault.delay
            if self._happens(self.fault.reorder):
                at_time += 1e-3
            heapq.heappush(self._out, (at_time, next(self._order), data))

    def receive(self, now: float) -> list[bytes]:
        """What has come out by ``now``."""
        frames = []
        while self._out and self._out[0][0] <= now:
            frames.append(heapq.heappop(self._out)[2])
        return frames

    @property
    def next_at(self) -> float:
        """When the next frame comes out; infinite for none."""
        return self._out[0][0] if self._out else float("inf")

    def _happens(self, chance: float) -> bool:
        return self._chance.random() < chance
