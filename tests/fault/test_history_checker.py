"""The checker of histories finds what is wrong, and only that."""

import math

import pytest

from tests.fault.history import INITIAL, Operation, Order, reorderings, violations


def w(value: int, begin: float, end: float) -> Operation:
    return Operation(7, True, value, begin, end)


def r(value: int, begin: float, end: float) -> Operation:
    return Operation(7, False, value, begin, end)


GOOD = {
    "one after the other": [w(1, 0, 1), r(1, 2, 3), w(2, 4, 5), r(2, 6, 7)],
    "overlapping, either way": [w(1, 0, 10), w(2, 1, 9), r(1, 11, 12)],
    "a read during a write sees old or new": [w(1, 0, 1), w(2, 2, 9), r(2, 3, 4), r(2, 5, 6)],
    "never answered, never seen": [w(1, 0, 1), w(2, 2, math.inf), r(1, 3, 4)],
    "never answered, seen late": [w(1, 0, math.inf), r(INITIAL, 2, 3), r(1, 9, 10)],
    "seen late, though another was sent since": [w(1, 0, 5), w(2, 1, 6), r(INITIAL, 2, 3)],
    "nothing yet": [r(INITIAL, 0, 1)],
}
BAD = {
    "an acknowledged write is lost": [w(1, 0, 1), r(INITIAL, 2, 3)],
    "an older value comes back": [w(1, 0, 1), w(2, 2, 3), r(2, 4, 5), r(1, 6, 7)],
    "old after new, during a write": [w(1, 0, 1), w(2, 2, 9), r(2, 3, 4), r(1, 5, 6)],
    "from nowhere": [r(9, 0, 1)],
    "from the future": [r(1, 0, 1), w(1, 2, 3)],
    "lost between two others": [w(1, 0, 1), r(1, 2, 3), w(2, 4, 5), r(1, 6, 7)],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_a_disk_can_do(history: list[Operation]) -> None:
    assert violations(history) == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_no_disk_can_do(history: list[Operation]) -> None:
    assert len(violations(history)) >= 1
    assert violations(history)[0].startswith("sector 7: ")


def test_one_clients_writes_keep_their_order() -> None:
    history, order = [w(1, 0, 5), w(2, 1, 6)], Order(7, 1, 2, 6)
    assert reorderings([*history, r(1, 2, 3), r(2, 7, 8)], [order]) == []
    assert len(reorderings([*history, r(1, 7, 8)], [order])) == 1
