"""A planned restart under load: no client is told of an error, what it wrote is there."""

import signal
from pathlib import Path

import pytest

from bench.overload import Room
from bench.restart import run
from pxed.ask import ControlClient
from tests.aoe_peer import eventually
from tests.conftest import requires
from tests.netns.conftest import Serve
from tests.netns.site import vblade

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


def test_after_a_restart_a_rival_is_an_alarm_and_no_refusal(serve: Serve, tmp_path: Path) -> None:
    """Clients wait for us: another target at our address is told of, not waited for."""
    requires("vblade")
    process = serve.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    disk = tmp_path / "rival"
    disk.write_bytes(bytes(1 << 20))
    vblade(serve.cable.cli, 16, 0, disk)
    assert (serve.state / "stopped").exists()
    (serve.state / "stopped").touch()  # just now, however long the rival took
    serve.start()
    control = ControlClient(serve.state / "control.sock")
    assert eventually(
        lambda: any("16.0" in str(each.get("text")) for each in control.follow("/v1/events")), 150
    )
