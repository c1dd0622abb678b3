"""Plain text for people: tables that fit the terminal, amounts and spans of time."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

_NARROW = 40  # characters: where less is left for it, a long last column goes below its line
_BELOW = " " * 4


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    header: bool = True,
    spare: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Columns as wide as they need; empty columns are left out.

    On a terminal (or to ``width``) those of ``spare`` go, in this order, until the rest fits; what
    the last one has too much is folded or goes below. A file or a pipe gets all of it.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size((120, 25)).columns
    keep = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    widths = {i: max(len(row[i]) for row in [*rows, *([heads] if header else [])]) for i in keep}
    for head in spare if width is not None else ():
        # What the last column has beyond its share can be folded, so it spares no other.
        needs = sum(widths[i] + 2 for i in keep[:-1]) + min(widths[keep[-1]], _NARROW)
        if needs > (width or 0):
            keep = [i for i in keep if heads[i] != head]
    if not keep:
        return ""
    before = sum(widths[i] + 2 for i in keep[:-1])
    text = []
    for line in [heads, *rows] if header else rows:
        first = "".join(f"{line[i]:{widths[i] + 2}}" for i in keep[:-1])
        last = line[keep[-1]]
        if width is None or before + len(last) <= width:
            text.append((first + last).rstrip())
        elif width - before < _NARROW:
            text += fold(first.rstrip(), width)
            text += textwrap.wrap(
                last, width, initial_indent=_BELOW, subsequent_indent=_BELOW,
            )  # fmt: skip
        else:
            folded = textwrap.wrap(last, width - before)
            text.append(first + folded[0])
            text += [" " * before + each for each in folded[1:]]
    return "\n".join(text)


def fold(line: str, width: int | None = None, below: str = _BELOW) -> list[str]:
    """A line that fits the terminal (or ``width``); what is too much goes below, behind
    ``below``.

    A file or a pipe gets the line as it is.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size((120, 25)).columns
    if width is None or len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=below, break_on_hyphens=False)


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
