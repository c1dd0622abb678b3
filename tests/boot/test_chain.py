"""A BIOS PC that is made to load our undionly.kpxe, whatever iPXE its card has."""

import pytest

from tests.boot.conftest import RoomMaker

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]


def test_bios_loads_undionly_by_tftp_and_boots(make_room: RoomMaker) -> None:
    room = make_room('[class.x86]\nipxe = "own"\n')
    seat = room.seat("bios")
    assert room.stages(seat) == [
        "DISCOVER",
        "OFFER",
        "boot file",
        "iPXE",
        "first AoE read",
        "kernel up",
        "root mounted",
        "/config mounted",
        "running",
    ]
    (done,) = [e for e in room.server.control.follow("/v1/events") if e["kind"] == "tftp-done"]
    assert (done["file"], done["mac"]) == ("undionly.kpxe", seat.mac)
    assert room.server.client(seat.mac)["boots"] == 1
