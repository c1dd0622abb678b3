"""Turns what the AoE target counted and what clients wrote to their report devices into events.

The data path never calls Python: it leaves times and counts in shared rows (``Target.stats``), and
this module looks at them a few times a second. The times in the events are the target's own.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aoe_fast import Target
from pxed.events import Event, Kind
from pxed.images import REPORT_SLOT
from pxed.mac import Mac, mac_bytes, mac_text

SECTOR = 512
REPORT_LINES = 24  # what follows them on the device is what the server says to an installer
HEARD_EVERY_NS = 5_000_000_000
LATE_NS = 10_000_000_000  # a write that had to wait for the disk is counted before it is there
_COARSE = 0.1  # seconds that a file's time may be behind the clock; no machine starts in that
_UNREAD = np.iinfo(np.uint64).max  # no count of writes

_FIRSTS = (
    ("first_query_ns", Kind.AOE_FOUND),
    ("first_read_ns", Kind.AOE_READ),
    ("first_write_ns", Kind.AOE_WRITE),
)


class Watch:
    """Looks at a target's rows; ``poll`` returns what is new as events, oldest first.

    ``report_path`` gives the file behind a client's report device.
    """

    def __init__(self, target: Target, report_path: Callable[[Mac], Path]) -> None:
        self._target = target
        self._report_path = report_path
        self._rows: dict[int, tuple[Mac, int, int]] = {}
        self._rows_of: defaultdict[Mac, list[int]] = defaultdict(list)
        self._keys: dict[int, tuple[bytes | None, int, int]] = {}  # as the target gives them
        self._reports = np.zeros(0, dtype=np.intp)
        size = len(target.stats)
        self._told = np.zeros((len(_FIRSTS), size), dtype=bool)
        self._heard = np.zeros(size, dtype=np.int64)
        self._writes = np.zeros(size, dtype=np.uint64)
        self._lines: dict[Mac, int] = {}
        self._used = 0
        self._mine = np.zeros(0, dtype=bool)

    def refresh(self) -> None:
        """Look up again which row is whose: call it after views were changed.

        Costs little for rows that are as they were: the target keeps their very keys.
        """
        rows = self._target.rows()
        fresh = [(key, row) for key, row in rows.items() if self._keys.get(row) is not key]
        added = sum(1 for _, row in fresh if row not in self._keys)
        if len(self._keys) + added != len(rows):  # some are gone
            still = set(rows.values())
            for row in [row for row in self._keys if row not in still]:
                self._disown(row)
        mine = []
        for key, row in fresh:
            self._disown(row)
            self._keys[row] = key
            if key[0] is not None:
                owner = (mac_text(key[0]), key[1], key[2])
                self._rows[row] = owner
                self._rows_of[owner[0]].append(row)
                mine.append(row)
        if mine:
            self._own(mine)

    def _own(self, rows: list[int]) -> None:
        used = max(self._used, max(rows) + 1)
        self._mine = np.pad(self._mine, (0, used - self._used))
        self._used = used
        self._mine[rows] = True
        reports = [row for row in rows if self._rows[row][2] == REPORT_SLOT]
        self._reports = np.union1d(self._reports, np.array(reports, dtype=np.intp))
        self._told[:, rows] = False
        # The target begins each row with zeroes. What was written since was never looked at.
        self._writes[rows] = 0

    def _disown(self, row: int) -> None:
        self._keys.pop(row, None)
        owner = self._rows.pop(row, None)
        if owner is not None:
            mine = self._rows_of[owner[0]]
            mine.remove(row)
            if not mine:
                del self._rows_of[owner[0]]
            self._mine[row] = False
            self._reports = self._reports[self._reports != row]

    def begin_boot(self, mac: Mac) -> None:
        """Forget this client's last boot: its first frames will be told again."""
        stats = self._target.stats
        for row in self._rows_of.get(mac, ()):
            for name, _kind in _FIRSTS:
                stats[name][row] = 0
            self._forget(row)
        self._lines[mac] = 0

    def unread(self, mac: Mac, since: float) -> None:
        """Have the next look read this client's report, if its boot, which began then, wrote it.

        For a boot from before this server's start: its lines may be there and not be counted. Older
        ones are of a boot before, killed with the server before it was emptied.
        """
        try:
            written = self._report_path(mac).stat().st_mtime
        except OSError:
            return
        if written >= since - _COARSE:
            rows = [row for row in self._rows_of.get(mac, ()) if self._rows[row][2] == REPORT_SLOT]
            self._writes[rows] = _UNREAD

    def silence(self, macs: Iterable[Mac], monotonic_ns: int) -> float:
        """Seconds since any of these addresses was heard over AoE; infinite for never."""
        last = self._target.stats["last_ns"]
        heard = [int(last[row]) for mac in macs for row in self._rows_of.get(mac, ())]
        newest = max(heard, default=0)
        return (monotonic_ns - newest) / 1e9 if newest else float("inf")

    def forget(self, mac: Mac) -> None:
        """This client is no more."""
        self._lines.pop(mac, None)

    def _forget(self, row: int) -> None:
        self._told[:, row] = False
        self._writes[row] = self._target.stats["writes"][row]

    def poll(self, monotonic_ns: int, wall: float) -> list[Event]:
        """What is new since the last call; the arguments are the present by both clocks."""
        used = self._used
        if not used:
            return []
        stats = self._target.stats[:used]
        events: list[Event] = []

        def when(at_ns: int) -> float:
            return wall - (monotonic_ns - at_ns) / 1e9

        for index, (name, kind) in enumerate(_FIRSTS):
            told = self._told[index, :used]
            firsts: npt.NDArray[np.int64] = stats[name]
            for row in np.flatnonzero((firsts != 0) & ~told & self._mine).tolist():
                told[row] = True
                mac, shelf, slot = self._rows[row]
                at = when(int(firsts[row]))
                events.append(Event(kind, mac, at, {"shelf": shelf, "slot": slot}))
        last: npt.NDArray[np.int64] = stats["last_ns"]
        heard = (last > self._heard[:used] + HEARD_EVERY_NS) & self._mine
        for row in np.flatnonzero(heard).tolist():
            self._heard[row] = last[row]
            events.append(Event(Kind.AOE_HEARD, self._rows[row][0], when(int(last[row]))))
        writes: npt.NDArray[np.uint64] = stats["writes"]
        changed = writes[self._reports] != self._writes[self._reports]
        for row in self._reports[changed].tolist():
            count = writes[row]
            said = self._read_report(row, monotonic_ns, wall)
            # Fewer lines than writes: one of them may be on its way yet, and is looked for again.
            all_there = len(said) >= int(count) - int(self._writes[row])
            if all_there or monotonic_ns - int(last[row]) > LATE_NS:
                self._writes[row] = count
            events += said
        events.sort(key=lambda event: event.time)
        return events

    def reports(self, mac: Mac, monotonic_ns: int, wall: float) -> list[Event]:
        """The new lines of one client, as ``poll`` would return them."""
        stats = self._target.stats
        events: list[Event] = []
        for row in self._rows_of.get(mac, ()):
            if self._rows[row][2] == REPORT_SLOT and stats["writes"][row] != self._writes[row]:
                events += self._read_report(row, monotonic_ns, wall)
        return events

    def _read_report(self, row: int, monotonic_ns: int, wall: float) -> list[Event]:
        mac, last_ns = self._rows[row][0], int(self._target.stats["last_ns"][row])
        line, path = self._lines.get(mac, 0), self._report_path(mac)
        try:
            # A server that has just started has not heard what is there already.
            latest = wall - (monotonic_ns - last_ns) / 1e9 if last_ns else path.stat().st_mtime
            data = path.read_bytes()
        except OSError:
            return []
        lines = []
        while line < REPORT_LINES and (line + 1) * SECTOR <= len(data) and data[line * SECTOR]:
            lines.append(parse_report(data[line * SECTOR : (line + 1) * SECTOR]))
            line += 1
        self._lines[mac] = line
        if not lines:
            return []
        # The client's own uptime tells how far apart its lines are.
        end = lines[-1][1]
        return [
            Event(
                Kind.REPORT,
                mac,
                latest - max(0.0, end - uptime),
                {"step": step, "uptime": uptime, "text": text},
            )
            for step, uptime, text in lines
        ]


def parse_report(sector: bytes) -> tuple[str, float, str]:
    """Step, uptime in seconds and text of one line ``STEP UPTIME text``; never raises.

    The bytes are a client's: only printable ASCII is kept, so that they are safe on a terminal.
    """
    raw = sector.split(b"\0", 1)[0].decode("ascii", "replace")
    words = "".join(c if c.isprintable() and c.isascii() else " " for c in raw).split(None, 2)
    step = words[0] if words else ""
    try:
        uptime = float(words[1]) if len(words) > 1 else 0.0
    except ValueError:
        uptime = 0.0
    if not 0.0 <= uptime <= 1e9:  # also what no number compares with
        uptime = 0.0
    return step, uptime, words[2].rstrip() if len(words) > 2 else ""


def erase_report(path: Path, orders: bytes = b"") -> None:
    """Empty a client's report file in place (it stays exported).

    ``orders`` to the client follow the lines.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        os.pwrite(fd, (bytes(REPORT_LINES * SECTOR) + orders).ljust(size, b"\0"), 0)
    finally:
        os.close(fd)


def rows_of(target: Target, mac: Mac) -> dict[tuple[int, int], int]:
    """The statistics rows of one client, by (shelf, slot)."""
    raw = mac_bytes(mac)
    return {(shelf, slot): row for (m, shelf, slot), row in target.rows().items() if m == raw}
