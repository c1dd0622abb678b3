"""A BIOS PC without a disk: one boot, looked at from both sides; then it boots again."""

import signal

import pytest

from pxed.lab.qemu import Client
from tests.boot.conftest import Room, RoomMaker

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def room(make_room: RoomMaker) -> Room:
    return make_room()


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    return room.seat("bios")


def test_the_server_saw_every_stage(room: Room, seat: Client) -> None:
    assert room.stages(seat) == [
        "DISCOVER",
        "OFFER",
        "iPXE",
        "first AoE read",
        "kernel up",
        "root mounted",
        "/config mounted",
        "running",
    ]


def test_the_client_list_says_that_it_runs(room: Room, seat: Client) -> None:
    (shown,) = room.server.control.get("/v1/clients")
    assert (shown["mac"], shown["state"], shown["image"]) == (seat.mac, "running", "lab@1")


def test_its_root_is_the_shared_image_under_its_own_layer(seat: Client) -> None:
    mounts = seat.shell("cat /proc/mounts")
    assert "root / overlay rw" in mounts
    assert "/dev/etherd/e16.3 /config ext4 rw" in mounts
    assert "degraded" not in seat.shell("ls /run/pxed")


def test_it_sees_its_devices_and_nothing_else(seat: Client) -> None:
    assert seat.shell("ls /sys/block").split() == [
        "etherd!e16.0",
        "etherd!e16.1",
        "etherd!e16.3",
        "etherd!e16.4",
    ]


def test_the_shared_root_cannot_be_written(seat: Client) -> None:
    said = seat.shell(
        "dd if=/dev/zero of=/dev/etherd/e16.1 bs=4096 count=1 conv=fsync", check=False
    )
    assert "error" in said.lower() or "not permitted" in said.lower()


def test_no_frame_was_dropped(room: Room, seat: Client) -> None:
    assert seat.running
    assert room.server.control.get("/v1/status")["aoe"]["drops"] == 0


def test_the_midlayer_was_ready_before_the_kernel(room: Room, seat: Client) -> None:
    events = list(room.server.control.follow("/v1/events"))
    mine = [e for e in events if e["mac"] == seat.mac]
    ready = next(e for e in mine if e["kind"] == "midlayer-ready")
    kernel = next(e for e in mine if e["kind"] == "stage" and e["stage"] == "kernel up")
    assert ready["time"] < kernel["time"]


def test_what_it_wrote_is_there_after_its_next_boot(room: Room, seat: Client) -> None:
    seat.shell("echo precious > /root/mine && sync")
    seat.send("while :; do echo before the reset; done\n")
    seat.wait_for("\nbefore the reset")
    seat.reset()
    room.server.wait_running(seat, 200)
    assert "before the reset" not in seat.console()
    assert seat.shell("cat /root/mine") == "precious\n"
    assert room.server.client(seat.mac)["boots"] == 2


def test_what_it_wrote_is_there_after_a_power_cut(room: Room, seat: Client) -> None:
    seat.shell("echo durable > /root/cut && sync")
    seat.power_off()
    seat.power_on()
    room.server.wait_running(seat, 200)
    assert seat.shell("cat /root/cut") == "durable\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_is_not_noticed(
    room: Room, seat: Client, how: signal.Signals
) -> None:
    before = room.server.client(seat.mac)
    room.server.stop(how)
    room.server.start()
    seat.shell("echo 3 > /proc/sys/vm/drop_caches; echo after > /root/restart && sync")
    assert seat.shell("cat /root/restart") == "after\n"
    assert "I/O error" not in seat.console()
    after = room.server.client(seat.mac)
    assert (after["state"], after["boots"], after["image"]) == ("running", before["boots"], "lab@1")


def test_what_it_wrote_is_there_after_the_servers_restart_and_its_own(
    room: Room, seat: Client
) -> None:
    seat.shell("echo kept > /root/both && sync")
    room.server.stop()
    room.server.start()
    seat.reset()
    room.server.wait_running(seat, 200)
    assert seat.shell("cat /root/both") == "kept\n"


def test_a_graceful_stop_leaves_no_socket(room: Room, seat: Client) -> None:
    assert seat.running
    assert room.server.stop() == 0
    assert not room.server.control.path.exists()
    room.server.start()
