"""The pauses of a worker on a real link: by what it counts, as no test may depend on the time."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast import Export, Server, Target
from tests.aoe_peer import Peer, eventually, serving, total
from tests.conftest import Cable

pytestmark = pytest.mark.netns

FULL = 24  # aoe_fast/pauses.pyx
MOST_NS = 1_000_000_000


@pytest.fixture
def peer(cable: Cable) -> Iterator[Peer]:
    peer = Peer(cable)
    yield peer
    peer.socket.close()


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "disk").write_bytes(bytes(65536))
    target = Target()
    target.set_view(None, {(16, 3): Export(tmp_path / "disk")})
    return target


def find(server: Server, peer: Peer, many: int) -> None:
    """Have the worker find so many requests at once, and answer them."""
    # While a side thread is at work no worker waits for anything else.
    assert eventually(lambda: server.answered() == server.handed_over())
    server.ports[0].halt()
    for tag in range(many):
        peer.send(peer.read(0, tag=tag))
    peer.arrived()
    server.ports[0].start()
    assert {reply.tag for reply in peer.answers(many)} == set(range(many))


def several_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors: with one no worker looks twice before it sleeps")


@pytest.mark.parametrize(("many", "pauses"), [(1, 0), (2, 1), (FULL - 1, 1), (FULL, 0), (64, 0)])
def test_only_a_batch_that_is_small_but_not_the_smallest_is_waited_for(
    cable: Cable, peer: Peer, target: Target, many: int, pauses: int
) -> None:
    several_cpus()
    with serving(cable, target, spin_us=MOST_NS // 1000) as server:
        find(server, peer, many)
        assert total(server, "pauses") == pauses, "pauses of the worker"
        assert total(server, "filled") == 0, "nothing came that could have filled a batch"


def test_a_pause_that_brought_nothing_is_not_tried_at_once_again(
    cable: Cable, peer: Peer, target: Target
) -> None:
    several_cpus()
    with serving(cable, target, spin_us=MOST_NS // 1000) as server:
        pauses = []
        for _ in range(5):
            find(server, peer, FULL // 2)
            pauses.append(total(server, "pauses"))
    assert pauses == [1, 2, 2, 2, 3]


def test_a_server_that_does_not_spin_does_not_pause(
    cable: Cable, peer: Peer, target: Target
) -> None:
    with serving(cable, target, spin_us=0) as server:
        find(server, peer, FULL // 2)
        assert total(server, "pauses") == 0


def test_a_client_that_keeps_its_queue_full_fills_batches(
    cable: Cable, peer: Peer, target: Target
) -> None:
    """Its worker finds a few requests, waits, and takes a full batch: once is enough to see it."""
    several_cpus()
    over = threading.Event()

    def ask() -> None:
        frames = [peer.read(0, tag=tag) for tag in range(64)]
        while not over.is_set():
            for frame in frames:
                peer.send(frame)

    with serving(cable, target, spin_us=MOST_NS // 1000) as server:
        asks = threading.Thread(target=ask)
        asks.start()
        try:
            seen = eventually(lambda: total(server, "filled") > 0)
        finally:
            over.set()
            asks.join()
        assert seen, f"no batch was filled by {total(server, 'pauses')} pauses"
