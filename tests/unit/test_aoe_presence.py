"""Servers of one machine: who clashes with whom, and what is told of it."""

import click
import pytest

from aoe_fast.presence import Neighbour, Seen, _pack, _unpack, seen_in
from aoe_fast.rivals import Lookout

A, B = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
ALL, ONLY_A, ONLY_B = (seen_in([(mac, 16, 0)]) for mac in (None, A, B))


@pytest.mark.parametrize(
    ("ours", "theirs", "clashes"),
    [
        (ALL, ALL, True), (ALL, ONLY_A, True), (ONLY_A, ALL, True), (ONLY_A, ONLY_A, True),
        (ONLY_A, ONLY_B, False), (ALL, seen_in([(None, 16, 1)]), False), (ALL, {}, False),
    ],
)  # fmt: skip
def test_who_clashes(ours: Seen, theirs: Seen, clashes: bool) -> None:
    assert (Neighbour("x", theirs).clash(ours) == (16, 0)) is clashes


def test_everybody_contains_each() -> None:
    assert seen_in([(A, 16, 0), (None, 16, 0), (B, 16, 0), (A, 16, 3)]) == {
        (16, 0): None, (16, 3): frozenset([A.hex(":")]),
    }  # fmt: skip


def test_what_is_packed_comes_back() -> None:
    seen = seen_in([(None, 16, 0), (A, 16, 3), (B, 16, 3)])
    assert _unpack(_pack("pxed", seen)) == Neighbour("pxed", seen)


def test_a_lookout_tells_once_and_again_when_it_comes_back() -> None:
    told: list[str] = []
    lookout = Lookout(told.append)

    def there() -> None:
        raise click.UsageError("16.0 is served on eth0 by another: stop that one")

    for check in (there, there, lambda: None, there):
        lookout.look(check, lambda: None)
    assert len(told) == 2
    assert told[0].startswith("16.0 is served on eth0 by another: machines mix the two")
