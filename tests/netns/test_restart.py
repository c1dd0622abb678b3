"""A planned restart under load: no client is told of an error, what it wrote is there."""

import pytest

from bench.overload import Room
from bench.restart import run
from tests.conftest import requires

pytestmark = pytest.mark.netns


def test_a_restart_under_load_is_a_pause_and_nothing_else() -> None:
    requires("udhcpc", "mkfs.ext4")
    with Room() as room:
        seat, stops = run(room, 2)
    assert seat.errors == []
    assert seat.answers > 100
    for status, last in stops:
        assert status == 0
        assert "stopped after" in last
        assert "2 writable devices synced" in last
