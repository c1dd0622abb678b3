"""The advertised queue depth: the sum fits the rings, losses halve it, calm doubles it."""

from pathlib import Path

import numpy as np
import pytest

from aoe_fast import Export
from aoe_fast.admin import write_settings
from aoe_fast.throttle import LEAST, Throttle, announcements, count_clients
from tests.aoe_frames import CLIENT, SERVER, STRANGER, Reply


@pytest.mark.parametrize("clients", [1, 2, 100, 127, 128, 129, 500, 4000, 100000])
def test_the_sum_fits_the_ring(clients: int) -> None:
    throttle = Throttle(64, 8192, 2048)
    throttle.update(0, clients, 0, 0)
    assert LEAST <= throttle.value <= 64
    assert throttle.value == LEAST or throttle.value * clients <= 8192
    if clients <= 128:
        assert throttle.value == 64


def test_writers_have_a_smaller_ring() -> None:
    throttle = Throttle(64, 8192, 2048)
    throttle.update(0, 100, 100, 0)
    assert throttle.value == 16


def test_only_a_fall_is_news() -> None:
    throttle = Throttle(64, 8192, 2048)
    assert not throttle.update(0, 10, 0, 0)
    assert throttle.update(1, 200, 0, 0)
    assert not throttle.update(2, 200, 0, 0)
    assert not throttle.update(3, 10, 0, 0)
    assert throttle.value == 64


def test_losses_halve_it_and_calm_doubles_it() -> None:
    throttle = Throttle(64, 8192, 2048)
    assert throttle.update(0, 10, 0, 5)
    assert throttle.value == 32
    assert throttle.update(1, 10, 0, 1)
    assert throttle.value == 16
    for second in range(2, 31):
        throttle.update(second, 10, 0, 0)
    assert throttle.value == 16
    throttle.update(31, 10, 0, 0)
    assert throttle.value == 32
    throttle.update(61, 10, 0, 0)
    assert throttle.value == 64


def test_it_never_stops_linux() -> None:
    throttle = Throttle(64, 64, 64)
    for second in range(20):
        throttle.update(second, 10000, 10000, 100)
    assert throttle.value == LEAST


def test_announcements_are_config_replies(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    open_to_all, masked = Export(path), Export(path)
    write_settings(open_to_all, config=b"hello")
    write_settings(masked, allowed=[STRANGER])
    (raw,) = announcements(CLIENT, SERVER, 9000, 8, {(16, 0): open_to_all, (16, 1): masked})
    reply = Reply(raw)
    assert (reply.dst, reply.src, reply.flags, reply.error) == (CLIENT, SERVER, 0x18, 0)
    assert reply.address == (16, 0)
    assert int.from_bytes(reply.body[0:2], "big") == 8
    assert reply.body[4] == 16
    assert reply.text == b"hello"
    assert len(raw) == 60


@pytest.mark.parametrize(
    ("working", "strangers", "count"), [(0, 0, 0), (30, 100, 130), (30, 4000, 542), (4000, 0, 4000)]
)
def test_a_flood_of_made_up_addresses_takes_nobodys_queue_depth(
    working: int, strangers: int, count: int
) -> None:
    requests = np.array([100] * working + [1] * strangers, dtype=np.uint64)
    assert count_clients(requests) == count
