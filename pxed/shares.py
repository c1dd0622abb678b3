"""How much of the log one machine may fill: a token bucket for each. Pure.

A Raspberry Pi's boot asks for sixty files and makes some two hundred entries. Whoever makes many
more, or lets others use its address, would push out what is to be read of all the others.
"""

from pxed.mac import Mac

BURST = 1000.0  # entries: several boots in a row
RATE = 2.0  # and so many each second after that
SPARED = 100.0  # of them for what its boot comes to, whatever else it says
_MOST = 1024


class Shares:
    """``total`` counts the entries of all machines that were left out."""

    def __init__(self) -> None:
        self._left: dict[Mac, tuple[float, float]] = {}  # entries, and when that was
        self._out: dict[Mac, int] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._left)

    def may_log(self, mac: Mac, now: float, *, matters: bool) -> bool:
        """Whether one more entry of this machine goes into the log; ``matters``: of its boot."""
        left, since = self._left.get(mac, (BURST, now))
        left = min(BURST, left + max(now - since, 0.0) * RATE)
        may = left >= (1 if matters else 1 + SPARED)
        self._left[mac] = (left - may, now)
        if not may:
            self._out[mac] = self._out.get(mac, 0) + 1
            self.total += 1
        elif len(self._left) > _MOST:
            self._forget(now)
        return may

    def left_out(self) -> list[tuple[Mac, int]]:
        """Whose entries were left out since this was asked last, and how many; most first."""
        found, self._out = sorted(self._out.items(), key=lambda each: -each[1]), {}
        return found

    def _forget(self, now: float) -> None:
        """Those that have all of their share again; if that is nobody, those longest silent."""
        self._left = {mac: (left, since) for mac, (left, since) in self._left.items()
                      if left + (now - since) * RATE < BURST}  # fmt: skip
        if len(self._left) > _MOST:
            by_time = sorted(self._left.items(), key=lambda each: -each[1][1])
            self._left = dict(by_time[: _MOST // 2])
