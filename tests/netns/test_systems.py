"""Systems that boot nothing here and get their address from us: mode ``all``."""

from pathlib import Path
from typing import Any

import pytest

from pxed.dhcp.codec import Type
from tests.conftest import requires
from tests.netns.conftest import Serve
from tests.netns.test_kill import Room, machine
from tests.netns.test_mode import ALL, eventually, running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns

SCRIPT = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr replace $ip/24 dev $interface
echo $ip > LEASE
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """What udhcpc runs: the system has its address from then on."""
    path = tmp_path / "script"
    path.write_text(SCRIPT.replace("LEASE", str(tmp_path / "lease")))
    path.chmod(0o755)
    return path


def test_a_system_keeps_its_lease_however_many_want_one(serve: Serve, script: Path) -> None:
    """It boots nothing and renews in half an hour: that it answers at its address is enough."""
    requires("udhcpc", "ip")
    host = serve.cable.cli
    host.ip("addr flush dev eth0")
    text = f'{ALL}range = "10.77.0.50-10.77.0.50"\nlease = "1h"\n'
    before = "from pxed.dhcp import leases; leases.IDLE = 0.0\n"
    with running(serve, text, before=before) as control:

        def dhcp() -> dict[str, Any]:
            found: dict[str, Any] = control.get("/v1/status")["dhcp"]
            return found

        system = host.popen(["udhcpc", "-i", "eth0", "-f", "-t", "30", "-s", str(script)])
        eventually(lambda: dhcp()["free"] == 0 and dhcp()["unclaimed"] == dhcp()["idle"] == 0, 60)
        # Its script says so after it has set the address, at which the system answers.
        said = script.parent / "lease"
        eventually(lambda: said.exists() and said.read_text() == "10.77.0.50\n")
        room, before_it = Room(host), dhcp()["received"]
        for number in range(120):
            room.say(machine(number // 3), Type.DISCOVER)
        eventually(lambda: dhcp()["received"] >= before_it + 120, 60)
        room.close()
        status, events = dhcp(), list(control.follow("/v1/events"))
        system.terminate()
        system.wait(60)
    assert (status["free"], status["unclaimed"], status["idle"]) == (0, 0, 0)
    acked = [e["mac"] for e in events if e["kind"] == "ack"]
    assert len(set(acked)) == 1
    assert not [e for e in events if e["kind"] == "decline"]  # nobody was offered its address
    full = [e for e in events if e["kind"] == "pool-full"]
    assert full
    assert {e["idle"] + e["unclaimed"] + e["free"] for e in full} == {0}


def test_one_that_never_answers_is_idle(serve: Serve) -> None:
    """The other direction: who took an address and is not there makes room."""
    serve.cable.cli.ip("addr flush dev eth0")
    text = f'{ALL}range = "10.77.0.50-10.77.0.50"\nlease = "1h"\n'
    before = "from pxed.dhcp import leases; leases.IDLE = 0.0\n"
    with running(serve, text, before=before) as control:
        room = Room(serve.cable.cli)
        taken = room.boot(machine(1))
        assert control.get("/v1/status")["dhcp"]["idle"] == 1
        eventually(lambda: room.tries(machine(2)))
        assert room.boot(machine(2)) == taken
        room.close()
