"""From ``pxed image remove`` to the seat that frees what it wrote with that version."""

import pytest

from pxed.client.minimal import build_minimal
from tests.boot.conftest import RoomMaker

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(900)]
KERNEL = '[class.x86]\nboot = "kernel"\n'


def test_a_removed_versions_layer_goes_and_no_other(make_room: RoomMaker) -> None:
    room = make_room(KERNEL)
    build_minimal(room.state / "images/lab/2", name="lab", version="2")
    control = room.server.control
    control.post("/v1/images/use", {"image": "lab@1"})
    seat = room.seat()
    seat.shell("echo of the first > /root/mine; sync")
    assert seat.shell("ls /config/layers").split() == ["lab@1"]
    control.post("/v1/images/use", {"image": "lab@2"})

    def again() -> str:
        """The step ``config`` of the next boot."""
        seat.power_off()
        seat.power_on()
        room.server.wait_running(seat, 300)
        timeline = room.server.client(seat.mac)["timeline"]
        return next(str(each["detail"]) for each in timeline if each["stage"] == "/config mounted")

    assert again().endswith("free, layers of lab@1 besides")
    assert "mine" not in seat.shell("ls /root")
    control.ask("DELETE", "/v1/images/lab/1")
    assert again().endswith("free, removed those of lab@1")
    assert seat.shell("ls -A /config/layers").split() == ["lab@2"]
