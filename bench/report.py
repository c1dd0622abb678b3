"""Tables and plots of what was measured."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from bench.rows import reached

_COLUMNS = (
    ("cpu ns", "cpu_ns", "8.0f"),
    ("IOPS", "iops", "9.0f"),
    ("MB/s", "mb_s", "8.1f"),
    ("p50 us", "p50_us", "9.1f"),
    ("p99 us", "p99_us", "9.1f"),
    ("p99.9 us", "p999_us", "9.1f"),
    ("lost", "lost", "6.0f"),
    ("gen. ns", "own_ns", "8.0f"),
)
_NAMES = {
    "cpu_ns": "CPU per request", "iops": "IOPS", "p50_us": "p50 latency", "p99_us": "p99 latency",
    "server_drops": "frames dropped", "lost": "requests sent again", "undiscovered": "undiscovered",
}  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def progress(row: str, turn: int, runs: int, label: str, figures: dict[str, float]) -> None:
    """One measurement is done."""
    if sys.stderr.isatty():
        print(
            f"\r\033[K{row} {turn + 1}/{runs} {label}: {figures['iops']:.0f} IOPS",
            end="", file=sys.stderr, flush=True,
        )  # fmt: skip


def show(name: str, row: dict[str, Any]) -> None:
    """The table of one row."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    width = max(len(label) for label in row["cases"])
    heads = " ".join(f"{head:>{int(form.split('.')[0])}}" for head, _, form in _COLUMNS)
    print(f"\n{name}: {row['title']}\n  {'':{width}} {heads}")
    for label, figures in row["cases"].items():
        cells = " ".join(f"{figures[key]:{form}}" for _, key, form in _COLUMNS)
        print(f"  {label:{width}} {cells}")
    for line in _lines(row):
        print(f"  {line}", flush=True)


def _lines(row: dict[str, Any]) -> list[str]:
    lines = []
    for ratio in row["ratios"]:
        lines.append(
            f"{ratio['of']} / {ratio['to']}, {_NAMES[ratio['value']]}: {ratio['median']:.2f}"
            f" ({ratio['least']:.2f} to {ratio['most']:.2f}){_verdict(ratio)}"
        )
    for limit in row["limits"]:
        value = f"{limit['median']:.2f}".rstrip("0").rstrip(".")
        lines.append(f"{limit['of']}, {_NAMES[limit['value']]}: {value}{_verdict(limit)}")
    return lines


def _verdict(figure: dict[str, Any]) -> str:
    if not figure["wanted"]:
        return ""
    word = "reached" if reached(figure["median"], figure["wanted"]) else "NOT REACHED"
    return f"  wanted {figure['wanted']}: {word}"


def show_wanted(results: dict[str, Any]) -> None:
    """Every ratio that was wanted, in one place."""
    print(
        f"\n{results['rounds']} rounds of {results['seconds']:g} s, median of their ratios; ",
        end="",
    )
    machine = results["machine"]
    print(f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, ", end="")
    print(f"load {machine['load_before']:.1f} to {results['load_after']:.1f}")
    for name, row in results["rows"].items():
        for line in _lines(row):
            if "wanted" in line:
                print(f"  {name:16} {line}")


def plot(results: dict[str, Any], directory: Path) -> None:
    """Bars of each row: CPU per request, IOPS, latency; PNG files in ``directory``."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        sys.exit("bench aoe: --plot needs matplotlib: pip install 'pxed[bench]'")
    directory.mkdir(parents=True, exist_ok=True)
    for name, row in results["rows"].items():
        figure, axes = pyplot.subplots(1, 3, figsize=(11, 3), layout="constrained")
        labels = list(row["cases"])
        for axis, key, title in zip(
            axes,
            ("cpu_ns", "iops", "p99_us"),
            ("server CPU, ns per request", "IOPS", "p99 latency, us"),
            strict=True,
        ):
            rounds = [[run[key] for run in row["runs"][label]] for label in labels]
            middle = [row["cases"][label][key] for label in labels]
            reach = [
                [m - min(r) for m, r in zip(middle, rounds, strict=True)],
                [max(r) - m for m, r in zip(middle, rounds, strict=True)],
            ]
            axis.barh(labels, middle, xerr=reach, color="0.6")
            axis.invert_yaxis()
            axis.set_title(title, fontsize=9)
        figure.suptitle(row["title"], fontsize=10)
        figure.savefig(directory / f"{name}.png", dpi=120)
        pyplot.close(figure)
