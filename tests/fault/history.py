"""Histories of reads and writes, and whether one disk could have answered them in some order.

Every write has a value of its own, so the question is decided exactly and quickly: Gibbons and
Korach, "Testing Shared Memories" (1997), section 4. All operations on one value are its cluster. If
something of it ended before something else of it began, the disk held the value all that time (a
forward zone), and it can hold one value only.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

INITIAL = 0
"""What a sector holds before the first write."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One request on one sector; ``value`` was written or read, between two times.

    A write without an answer has ``end`` infinity: it may have happened, or may happen yet. A read
    without an answer is no operation.
    """

    sector: int
    writes: bool
    value: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Order:
    """One client sent ``first`` and then ``second`` (values) to a sector, and has both answers.

    So ``first`` was gone at ``end``, when the answer to ``second`` came, whenever it took effect.
    """

    sector: int
    first: int
    second: int
    end: float


def reorderings(history: Iterable[Operation], orders: Iterable[Order]) -> list[str]:
    """Reads of a value that the same client had overwritten, a line for each."""
    latest: dict[tuple[int, int], float] = {}
    for each in history:
        if not each.writes:
            key = (each.sector, each.value)
            latest[key] = max(latest.get(key, -math.inf), each.begin)
    return [f"sector {order.sector}: {order.first} was read after {order.second} had replaced it"
            for order in orders
            if latest.get((order.sector, order.first), -math.inf) > order.end]  # fmt: skip


def violations(history: Iterable[Operation]) -> list[str]:
    """What no disk can have done, a line for each; empty: all is well."""
    by_sector: defaultdict[int, list[Operation]] = defaultdict(list)
    for operation in history:
        by_sector[operation.sector].append(operation)
    return [f"sector {sector}: {text}" for sector, operations in sorted(by_sector.items())
            for text in _of_sector(operations)]  # fmt: skip


def _of_sector(operations: list[Operation]) -> list[str]:
    clusters: dict[int, list[Operation]] = defaultdict(list)
    clusters[INITIAL].append(Operation(0, True, INITIAL, -math.inf, -math.inf))
    for operation in operations:
        clusters[operation.value].append(operation)
    found, forward, backward = [], [], []
    for value, cluster in clusters.items():
        writes = [each for each in cluster if each.writes]
        if not writes:
            found.append(f"value {value} was read and never written")
            continue
        assert len(writes) == 1, f"value {value} was written twice"
        if any(not each.writes and each.end <= writes[0].begin for each in cluster):
            found.append(f"value {value} was read before it was written")
        if len(cluster) == 1 and writes[0].end == math.inf:
            continue  # it may never have happened
        last_begin = max(each.begin for each in cluster)
        first_end = min(each.end for each in cluster)
        if first_end < last_begin:
            forward.append((first_end, last_begin, value))
        else:
            backward.append((last_begin, first_end, value))
    forward.sort()
    for (_, end, one), (begin, _, two) in pairwise(forward):
        if begin < end:
            found.append(f"values {one} and {two} stood at one time: one is stale or lost")
    for begin, end, value in backward:
        for low, high, other in forward:
            if low < begin and end < high:
                found.append(f"value {value} was acknowledged while {other} stood: it is lost")
    return found
