"""Plain text for people: tables that fit the terminal, amounts and spans of time."""

import shutil
import sys
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True) -> str:
    """Columns as wide as they need; empty columns are left out.

    On a terminal the last one is cut to fit; a file or a pipe gets all of it.
    """
    keep = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[row[i] for i in keep] for row in rows]
    if header:
        lines.insert(0, [heads[i] for i in keep])
    widths = [max(len(line[i]) for line in lines) for i in range(len(keep))]
    room = shutil.get_terminal_size((120, 25)).columns if sys.stdout.isatty() else None
    text = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(each.rstrip()[:room] for each in text)


def amount(count: float) -> str:
    """Bytes for people: ``512 MiB``, ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            whole = count >= 100 or count == int(count)
            return f"{count:.0f} {unit}" if whole else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def ago(seconds: float) -> str:
    """A span for people: ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
