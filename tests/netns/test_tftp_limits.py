"""The TFTP server where more is asked of it than it gives: floods, and clients that start over."""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aoe_fast.mover import Mover
from aoe_fast.transfer import Transfer
from pxed.events import Kind
from pxed.tftp.codec import Data, Request, encode
from tests.aoe_peer import eventually
from tests.conftest import Cable
from tests.netns.test_tftp_server import ask, root, serving

__all__ = ["root"]  # the fixture
pytestmark = pytest.mark.netns


def test_one_client_cannot_take_every_session(cable: Cable, root: Path) -> None:
    with serving(cable, root) as (server, _), cable.cli.inside():
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(30)]
        for udp in sockets:
            udp.settimeout(60)
            udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
            udp.recv(2048)
        # Who made room for the last one may be on its way out.
        assert eventually(lambda: server.sessions == 16)
        for udp in sockets:
            udp.close()


def test_a_flood_of_requests_is_bounded(cable: Cable, root: Path) -> None:
    """Whoever never answers makes room for others; what is left ends at its timer."""
    addresses = [f"10.77.0.{n}" for n in range(10, 74)]
    with serving(cable, root, max_silent=100) as (server, _):
        cable.cli.ip(*(f"addr add {ip}/24 dev eth0" for ip in addresses))
        with cable.cli.inside(), ExitStack() as stack:
            for batch in range(1, 6):
                for ip in addresses:
                    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    udp.bind((ip, 0))
                    udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
                    # A batch may be on its way out.
                    assert server.sessions <= 100 + len(addresses)
                asked = batch * len(addresses)
                assert eventually(lambda n=asked: server.counters["received"] == n)
                assert eventually(lambda: not server._leaving)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                packet, _ = ask(udp)
                assert isinstance(packet, Data)
            assert eventually(lambda: server.sessions <= 101)  # the displaced are on their way out
            assert server.counters["displaced"] >= 5 * len(addresses) - 100


class SlowMover:
    """One that has no time to let go of what it is told to end."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mover, name)

    def end(self, _transfer: Transfer) -> None:
        pass


def test_a_flood_that_the_mover_cannot_follow_is_bounded_too(
    cable: Cable, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [f"10.77.0.{n}" for n in range(10, 74)]
    with serving(cable, root, max_silent=100) as (server, _):
        monkeypatch.setattr(server, "mover", SlowMover(server.mover))
        cable.cli.ip(*(f"addr add {ip}/24 dev eth0" for ip in addresses))
        with cable.cli.inside(), ExitStack() as stack:
            for _ in range(5):
                for ip in addresses:
                    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    udp.bind((ip, 0))
                    udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
            assert eventually(lambda: server.counters["received"] == 5 * len(addresses))
        # Counted as received first, and then as what became of it.
        assert eventually(
            lambda: server.counters["started"] + server.counters["refused"] == 5 * len(addresses)
        )
        assert server.counters["started"] == 200


@pytest.mark.parametrize("step", [1, -1], ids=["older first", "newer first"])
def test_a_client_that_started_over_ends_in_any_order(
    cable: Cable, root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The transfer that it gave up may be told of after the one that it began instead."""

    class Late(SlowMover):
        told = False

        def __init__(self, mover: Mover) -> None:
            super().__init__(mover)
            self.kept: dict[Transfer, None] = {}

        def end(self, transfer: Transfer) -> None:
            self._mover.end(transfer)

        def news(self) -> list[Transfer]:
            self.kept |= dict.fromkeys(self._mover.news())
            return list(self.kept)[::step] if self.told else []

    with serving(cable, root) as (server, events):
        late = Late(server.mover)
        monkeypatch.setattr(server, "mover", late)
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            ask(udp)
            ask(udp)
            assert eventually(lambda: server.counters["started"] == 2)
            assert eventually(lambda: sum(bool(each.end) for each in late.kept) == 1), late.kept
        late.told = True
    assert [event.kind for event in events].count(Kind.TFTP_FAILED) == 2


def test_every_session_taken_is_silence(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root, max_sessions=1) as (server, _),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        ask(first)
        second.settimeout(0.3)
        second.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
        assert eventually(lambda: server.counters["refused"] == 1)
        with pytest.raises(TimeoutError):
            second.recv(2048)
