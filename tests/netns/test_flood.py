"""A flood of made-up addresses at the running server: it costs a bounded amount of everything."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Type
from pxed.mac import Mac
from tests.conftest import requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_kill import Room, machine
from tests.netns.test_mode import eventually, running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
SMALL = (
    "from pxed import strangers; strangers.TRUST, strangers.MOST, strangers.AT_ALL = 20, 40, 60\n"
    "strangers.LOG_BURST = 300.0\n"
)


def files(serve: Serve) -> list[str]:
    return os.listdir(serve.state / "config/midlayers")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_a_flood_of_made_up_addresses(serve: Serve) -> None:
    serve.cable.cli.ip("addr flush dev eth0")
    with running(serve, GOOD, before=SMALL) as control:
        room, pid = Room(serve.cable.cli), control.get("/v1/status")["pid"]
        known = {machine(number): room.boot(machine(number)) for number in range(5)}
        eventually(lambda: len(files(serve)) >= 10)
        before = descriptors(pid)
        for number in range(600):
            room.say(Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"), Type.DISCOVER)
        eventually(lambda: control.get("/v1/status")["dhcp"]["received"] >= 610)
        eventually(lambda: sum(control.get("/v1/status")["clients"].values()) <= 65)
        eventually(lambda: len(files(serve)) <= 2 * (20 + 5) + 1)  # and the template
        # Those of who is forgotten are closed by a thread, a moment later.
        eventually(lambda: descriptors(pid) <= before + 2 * 20 + 5)
        events = list(control.follow("/v1/events"))
        assert len(events) < 500
        assert any("were not logged" in e.get("text", "") for e in events if e["kind"] == "alarm")
        # Known machines keep their addresses; a new one is served although nobody trusts it yet.
        assert {mac: room.boot(mac) for mac in known} == known
        new = machine(77)
        eventually(lambda: room.tries(new))
        eventually(lambda: f"{new.replace(':', '')}.ext4" in files(serve))
        assert control.get(f"/v1/clients/{new}")["state"] == "booting"
        room.close()


@contextmanager
def flooding(room: Room) -> Iterator[None]:
    """Each 5 ms a DISCOVER of a machine that is not there, until the end of the block."""
    stop = threading.Event()

    def flood() -> None:
        number = 0
        while not stop.wait(0.005):
            number += 1
            room.say(Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"), Type.DISCOVER)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def full_of(control: ControlClient) -> list[dict[str, Any]]:
    return [e for e in control.follow("/v1/events") if e["kind"] == "pool-full"]


def test_a_new_machine_gets_an_address_while_a_flood_goes_on(serve: Serve) -> None:
    """The pool has far fewer addresses than the flood asks for in a second."""
    requires("udhcpc")
    host = serve.cable.cli
    host.ip("addr flush dev eth0")
    text = GOOD + '[dhcp]\nrange = "10.77.0.50-10.77.0.69"\n'
    with running(
        serve, text, before="from pxed import strangers; strangers.TRUST = 20\n"
    ) as control:
        room = Room(host)
        with flooding(room):
            eventually(lambda: bool(full_of(control)))
            full = full_of(control)[0]  # the log does not keep all of a flood
            done = host.run(
                ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-T", "3", "-s", "/bin/true",
                 "-V", "PXEClient:Arch:00000:UNDI:002001"], check=False, timeout=60,
            )  # fmt: skip
        room.close()
    assert done.returncode == 0, done.stderr
    assert "lease of 10.77.0." in done.stderr + done.stdout
    assert full["unclaimed"] == full["size"] == 20
