"""A server on a bridge's port hears nothing: it says so, and what to serve instead."""

import re
import struct
from pathlib import Path

import pytest

from aoe_fast.master import master_in
from tests.conftest import Cable
from tests.netns.test_aoe_cli import Serve, client, stopped
from tests.netns.test_aoe_cli import serve as aoe_serve
from tests.netns.test_doctor import findings, of
from tests.netns.test_manage import Room, room

__all__ = ["aoe_serve", "room"]
pytestmark = pytest.mark.netns


def bridge(cable: Cable) -> None:
    """br0 with the server's interface as its port."""
    cable.srv.ip("link add br0 up type bridge", "link set eth0 master br0")


def alarms(room: Room) -> list[str]:
    return [line for line in room.pxed("event").splitlines() if "serve br0" in line]


def test_pxed_says_it_at_the_start_and_so_does_the_doctor(room: Room) -> None:
    bridge(room.cable)
    room.start()
    (said,) = room.until(lambda: alarms(room))
    assert "eth0 is a port of the bridge br0" in said
    found = of(findings(room, 1), "interface eth0")
    assert (found["grade"], found["todo"]) == ("BROKEN", "serve br0")


def test_pxed_says_it_when_its_interface_becomes_one(room: Room) -> None:
    room.start()
    assert not alarms(room)
    bridge(room.cable)
    room.until(lambda: alarms(room))


def test_aoe_fast_says_it_and_indeed_hears_nothing(
    aoe_serve: Serve, cable: Cable, tmp_path: Path
) -> None:
    bridge(cable)
    (tmp_path / "disk").write_bytes(bytes(4096))
    process = aoe_serve("--export", f"16.0={tmp_path / 'disk'}")
    assert "nothing answers" in client(cable, "discover", "-i", "eth0").stderr
    cable.srv.ip("link set eth0 nomaster")
    assert "16.0" in client(cable, "discover", "-i", "eth0").stdout
    status, said = stopped(process)
    assert status == 0
    assert re.fullmatch("aoe-fast: eth0 is a port of the bridge br0, .*\n", said)


@pytest.mark.parametrize("cut", range(0, 80, 3))
def test_what_netlink_says_may_be_cut_anywhere(cut: int) -> None:
    kind = struct.pack("=HH", 11, 4) + b"bridge\0\0"
    attributes = struct.pack("=HHI", 8, 10, 7) + struct.pack("=HH", 4 + len(kind), 18) + kind
    whole = struct.pack("=IHHIIBxHiII", 32 + len(attributes), 16, 0, 1, 0, 0, 1, 3, 0, 0)
    whole += attributes
    assert master_in(whole) == (7, "bridge")
    found = master_in(whole[:cut])
    assert found in ((0, ""), (7, ""), (7, "bridge")), "half an attribute was believed"
