"""Floods on every port: a seat that runs is answered, and afterwards all is as before."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from bench.overload import FLOODS, Room
from tests.aoe_peer import eventually
from tests.conftest import requires

pytestmark = [pytest.mark.netns, pytest.mark.timeout(500)]

PACKETS = 20_000


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    requires("udhcpc", "curl", "mkfs.ext4")
    with Room() as made:
        yield made


def alarms(room: Room) -> str:
    return " ".join(str(e.get("text")) for e in room.control.follow("/v1/events")
                    if e["kind"] == "alarm")  # fmt: skip


def settled(room: Room) -> int:
    """Descriptors, once the floods before this test have been digested."""
    end, before = time.monotonic() + 30, -1
    while (now := room.descriptors()) != before and time.monotonic() < end:
        before = now
        time.sleep(1)
    return now


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood(room: Room, kind: str) -> None:
    before, open_before = room.memory_kb(), room.descriptors()
    with room.flood(kind, PACKETS):
        took = room.ask_for(1.5, patience=60)
    assert float("inf") not in took, "a read of the seat's was not answered"
    assert room.lease()
    assert room.fetches()
    assert room.memory_kb() - before < 96 << 10
    # 512 transfers of clients that never answer, a socket and a file each.
    assert room.descriptors() - open_before < 1100
    assert room.process.poll() is None


def test_made_up_addresses_raise_an_alarm(room: Room) -> None:
    """After the floods above; alone: after some of its own (the socket drops what is too much).

    It is said once a minute: what is logged meanwhile may have pushed the last one out.
    """
    end = time.monotonic() + 240
    while "made-up addresses" not in alarms(room):
        assert time.monotonic() < end
        with room.flood("dhcp-macs", PACKETS):
            room.ask_for(0.5, patience=60)


def test_half_open_http_connections(room: Room) -> None:
    """Some hundred that say a word and wait: another machine is answered, and they soon are few."""
    before = settled(room)
    room.cli.ip("addr add 10.77.0.3/24 dev eth0")
    with contextlib.ExitStack() as stack, room.cli.inside():
        for _ in range(300):
            line = stack.enter_context(socket.socket())
            line.settimeout(60)
            line.bind(("10.77.0.2", 0))
            with contextlib.suppress(OSError):  # those beyond a client's number are shown the door
                line.connect(("10.77.0.1", 80))
                line.send(b"GET /boot/lab@1.ipxe HTTP/1.1\r\nHost: x")
        url = "http://10.77.0.1/ipxe/snponly.efi"
        done = room.cli.run(
            ["curl", "-sf", "-m", "60", "--interface", "10.77.0.3", "-o", "/dev/null", url],
            check=False,
        )
        assert done.returncode == 0
        assert eventually(lambda: room.descriptors() - before < 40)
        assert float("inf") not in room.ask_for(0.5, patience=60)
