"""What ``bench aoe`` measures: its rows, the cases of each, and the ratios that are wanted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One server under one load.

    server: ours, vblade or floor. load: arguments of the generator. beside: so many reads a second
    of another client at the same time, from the export after the first ones, its page cache
    dropped before each run, unless ``beside_warm``.
    """

    label: str
    server: str
    load: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    beside: int = 0
    beside_warm: bool = False
    vblade: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """``value`` of one case over that of another, measured in the same round."""

    of: str
    to: str
    value: str
    wanted: str = ""


@dataclass(frozen=True)
class Row:
    """Cases that are compared, with one set of images: ``exports`` files, ``size`` bytes in all."""

    name: str
    title: str
    cases: tuple[Case, ...]
    ratios: tuple[Ratio, ...] = ()
    mtu: int = 1500
    size: int = 256 * MIB
    writes: bool = False
    limits: tuple[tuple[str, str, str], ...] = ()
    """(case, value, what is wanted of its median), where no ratio says it."""


CPU = "cpu_ns"


def _reads(sectors: int) -> dict[str, Any]:
    return {"clients": 8, "window": 64, "sectors": sectors}


def _beside_peers(load: dict[str, Any]) -> tuple[Case, ...]:
    return tuple(Case(server, server, load) for server in ("ours", "vblade", "floor"))


def _read_row(name: str, title: str, sectors: int, mtu: int, share: str) -> Row:
    return Row(
        name,
        title,
        _beside_peers(_reads(sectors)),
        (
            Ratio("ours", "vblade", CPU, f"<= {share}"),
            Ratio("ours", "floor", CPU, "<= 1.10"),
            Ratio("ours", "vblade", "iops"),
        ),
        mtu=mtu,
    )


def _write_row(name: str, title: str, sectors: int, mtu: int) -> Row:
    load = {**_reads(sectors), "op": "write"}
    return Row(
        name,
        title,
        (
            Case("ours", "ours", load, {"writable": True, "durability": "writeback"}),
            Case("vblade", "vblade", load, vblade={"writable": True}),
        ),
        (Ratio("ours", "vblade", CPU, "<= 0.60"), Ratio("ours", "vblade", "iops")),
        mtu=mtu,
        writes=True,
    )


def _one_deep(name: str, title: str, wait: str, wanted: str) -> Row:
    load = {"clients": 1, "window": 1, "sectors": 2, "wait": wait}
    return Row(
        name,
        title,
        _beside_peers(load),
        (
            Ratio("ours", "vblade", "p50_us", "" if wait == "spin" else "<= 1.00"),
            Ratio("ours", "floor", "p50_us"),
        ),
        limits=(("ours", "p50_us", wanted),) if wanted else (),
    )


def _durable(name: str, title: str, exports: int, wanted: str = "") -> Row:
    load = {"clients": 64, "window": 4, "sectors": 8, "op": "write", "exports": exports}
    return Row(
        name,
        title,
        (
            Case("ours", "ours", load, {"writable": True, "durability": "durable"}),
            Case("vblade -s", "vblade", load, vblade={"writable": True, "sync": True}),
        ),
        (Ratio("ours", "vblade -s", "iops", wanted),),
        mtu=9000,
        size=64 * MIB,
        writes=True,
    )


_COLD = 500  # reads a second


def _cold(name: str, window: int, wanted: str = "") -> Row:
    load = {"clients": 1, "window": window, "sectors": 2, "wait": "sleep"}
    return Row(
        name,
        f"One client's warm reads ({window} in flight) beside another's {_COLD} cold ones a second",
        (
            Case("ours, warm alone", "ours", load, {"shared": True}),
            Case("ours, beside warm", "ours", load, {"shared": True}, _COLD, beside_warm=True),
            Case("ours, beside cold", "ours", load, {"shared": True}, _COLD),
            Case("vblade, warm alone", "vblade", load),
            Case("vblade, beside cold", "vblade", load, {}, _COLD),
        ),
        (
            Ratio("ours, beside cold", "ours, warm alone", "p99_us", wanted),
            # What the second client's being there costs, whatever it reads.
            Ratio("ours, beside warm", "ours, warm alone", "p99_us"),
            Ratio("ours, beside cold", "ours, beside warm", "p99_us"),
            Ratio("vblade, beside cold", "vblade, warm alone", "p99_us"),
        ),
        size=512 * MIB,
    )


# About a thousand in flight each, so that they differ in nothing but exports and clients.
_ONE = {"clients": 8, "window": 125, "sectors": 2}
_SPREAD = {"clients": 256, "window": 4, "sectors": 2, "exports": 256}
_MANY = {"clients": 1000, "window": 1, "sectors": 2, "exports": 4096}
_STORM = {"clients": 500, "window": 64, "sectors": 2, "discover": 1}

ROWS = (
    _read_row("read-1k", "1 KiB random reads, 8 clients x 64", 2, 1500, "0.45"),
    _read_row("read-8k", "8 KiB random reads, MTU 9000, 8 clients x 64", 16, 9000, "0.60"),
    _write_row("write-1k", "1 KiB writes, writeback, 8 clients x 64", 2, 1500),
    _write_row("write-8k", "8 KiB writes, writeback, MTU 9000, 8 clients x 64", 16, 9000),
    Row(
        "exports",
        "1 KiB random reads over many private exports, 256 MiB in all",
        (
            Case("ours, 1 export", "ours", _ONE),
            Case("ours, 256", "ours", _SPREAD),
            Case("vblade, 256", "vblade", _SPREAD),
            Case("ours, 4096, 1000 clients", "ours", _MANY),
        ),
        (
            Ratio("ours, 256", "vblade, 256", "iops", ">= 19"),
            Ratio("ours, 256", "ours, 1 export", CPU, "<= 1.10"),
            Ratio("ours, 4096, 1000 clients", "ours, 1 export", CPU, "<= 1.10"),
        ),
    ),
    _one_deep("one-spin", "One 1 KiB read at a time, spinning client", "spin", "<= 3.5"),
    _one_deep("one-sleep", "One 1 KiB read at a time, sleeping client", "sleep", ""),
    _durable("durable", "Durable 4 KiB writes, 64 clients x 4, one export", 1, ">= 10"),
    _durable("durable-private", "Durable 4 KiB writes, 64 clients x 4, an export each", 64),
    _cold("cold", 64, "<= 2.00"),
    # So few that whoever waits for one cold read's system call is more than a hundredth of all.
    _cold("cold-few", 4),
    Row(
        "storm",
        "500 clients discover at once, then 64 reads in flight each",
        (Case("ours", "ours", _STORM, {"server": {"ring_frames": 32768}}),),
        limits=(
            ("ours", "server_drops", "== 0"),
            ("ours", "lost", "== 0"),
            ("ours", "undiscovered", "== 0"),
        ),
    ),
)

BY_NAME = {row.name: row for row in ROWS}

_TESTS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
    "==": lambda value, bound: value == bound,
}


def reached(value: float, wanted: str) -> bool:
    """Whether ``value`` is what ``wanted`` ("<= 0.45") says."""
    test, bound = wanted.split()
    return _TESTS[test](value, float(bound))
