"""Has it become slower? Quick CPU ratios against the floor in the same run; fails above a bound.

    python -m bench check [--json] [--bounds FILE]

No time decides, only CPU per request as a ratio within one round, and counted instructions: other
work on the machine hits both sides. A ratio is the median of its rounds; one that is above its
bound is measured once more with three times the rounds before it counts.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import instructions, native, stormservers, trace
from bench.aoe import run_row
from bench.rows import BY_NAME
from bench.servers import alone
from bench.storm import TRACE, directory, storm
from bench.storm import options as storm_options
from pxed.errors import HostError, PxedError, UsageError

BOUNDS = Path(__file__).parent / "bounds.json"
ROUNDS, SECONDS = 3, 0.3
FEW, MANY, SHARE = 10, 60, 0.1
_ALONE = ("ours", "floor")


@dataclass(frozen=True)
class Figure:
    """One figure: its name in the bounds, and how it is measured in so many rounds."""

    name: str
    measure: Callable[[int], list[float]]
    noisy: bool = True


def row_ratio(name: str) -> Callable[[int], list[float]]:
    """CPU per request of ours to the floor's, in each round of a row of ``bench aoe``."""

    def measure(rounds: int) -> list[float]:
        row = BY_NAME[name]
        row = replace(row, cases=tuple(c for c in row.cases if c.label in _ALONE), size=64 << 20)
        found = run_row(row, rounds, SECONDS)
        ours, floor = (found[label] for label in _ALONE)
        return [a["cpu_ns"] / b["cpu_ns"] for a, b in zip(ours, floor, strict=True)]

    return measure


@functools.cache
def _storms(rounds: int) -> dict[tuple[str, int], list[float]]:
    """CPU per request of each (server, clients), round by round; measured once for both figures."""
    boot = trace.shorten(trace.load(TRACE), SHARE)
    asked = storm_options().parse_args(["--limit", "40"])
    pairs = (("pxed", FEW), ("floor", MANY), ("pxed", MANY))
    found: dict[tuple[str, int], list[float]] = {pair: [] for pair in pairs}
    with directory(None) as home:
        images = stormservers.Images(home, boot)
        for _ in range(rounds):
            for server, clients in pairs:
                figures = storm(server, clients, boot, images, asked)
                if figures["running"] < clients or figures["wrong"] or figures["bad_sectors"]:
                    raise HostError(f"a storm of {clients} clients over {server} went wrong: "
                                    "python -m bench storm says how")  # fmt: skip
                found[server, clients].append(figures["cpu_request_ns"])
    return found


def storm_ratio(rounds: int, *, to: tuple[str, int]) -> list[float]:
    """CPU of many clients' whole boots, for each request, to that of other storms."""
    found = _storms(rounds)
    return [a / b for a, b in zip(found["pxed", MANY], found[to], strict=True)]


def counted(kind: str) -> Callable[[int], list[float]]:
    """Instructions that one frame takes."""

    def measure(_rounds: int) -> list[float]:
        try:
            return [instructions.count(kind)]
        except RuntimeError as error:
            raise HostError(str(error)) from None

    return measure


FIGURES = (
    Figure("read-1k / floor, CPU", row_ratio("read-1k")),
    Figure("read-8k / floor, CPU", row_ratio("read-8k")),
    Figure("storm / floor, CPU", functools.partial(storm_ratio, to=("floor", MANY))),
    Figure(f"storm, {MANY} clients / {FEW}, CPU", functools.partial(storm_ratio, to=("pxed", FEW))),
    *(
        Figure(f"{kind}, instructions", counted(kind), noisy=False)
        for kind in ("read-1k", "write-1k")
    ),
)


def judge(figure: Figure, bound: float, rounds: int = ROUNDS) -> tuple[float, bool]:
    """(median, whether it is within the bound); what seems too much is measured again."""
    value = statistics.median(figure.measure(rounds))
    if value > bound and figure.noisy:
        value = min(value, statistics.median(figure.measure(3 * rounds)))
    return value, value <= bound


def read_bounds(path: Path) -> dict[str, float]:
    """Figure -> the most that it may be; UsageError if one is missing or unknown."""
    try:
        bounds = {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path}: no bounds: {error}") from None
    names = {figure.name for figure in FIGURES}
    if odd := names ^ bounds.keys():
        raise UsageError(f"{path}: no bound for, or no figure called {', '.join(sorted(odd))}")
    return bounds


def main(argv: Sequence[str]) -> int:
    """Measure, compare, say; exit status 1 if one is above its bound."""
    parser = argparse.ArgumentParser(
        prog="python -m bench check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bounds", type=Path, default=BOUNDS)
    parser.add_argument("--only", action="append", choices=[f.name for f in FIGURES],
                        metavar="FIGURE", help="repeatable")  # fmt: skip
    asked = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("bench check: needs root, to make namespaces", file=sys.stderr)
        return 2
    lonely = alone()
    if lonely:
        print(f"bench check: ONLY INSTRUCTIONS ARE COUNTED: {lonely}", file=sys.stderr)
    rows = []
    try:
        bounds = read_bounds(asked.bounds)
        for name in () if lonely else ("floor", "storm", "generator"):
            native.program(name)
        for figure in FIGURES:
            if asked.only and figure.name not in asked.only:
                continue
            if figure.noisy and lonely:
                print(f"bench check: SKIPPED: {figure.name}", file=sys.stderr)
                continue
            if not figure.noisy and shutil.which("valgrind") is None:
                print(f"bench check: without {figure.name}: no valgrind", file=sys.stderr)
                continue
            value, good = judge(figure, bounds[figure.name])
            rows.append({"figure": figure.name, "value": round(value, 3),
                         "bound": bounds[figure.name], "within": good})  # fmt: skip
            if not asked.json:
                word = "" if good else "  WORSE THAN ITS BOUND"
                print(f"{figure.name:32} {value:8.2f}  <= {bounds[figure.name]:g}{word}",
                      flush=True)  # fmt: skip
    except (PxedError, subprocess.SubprocessError) as error:
        print(f"bench check: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    if asked.json:
        print(json.dumps(rows, indent=1))
    if not rows:
        print("bench check: NOTHING WAS CHECKED", file=sys.stderr)
    return 0 if all(row["within"] for row in rows) else 1
