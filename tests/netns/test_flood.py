"""A flood of made-up addresses at the running server: it costs a bounded amount of everything."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Type
from pxed.dhcp.pressure import MANY
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from pxed.tftp.codec import Request, encode
from tests.conftest import requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_kill import Room, machine
from tests.netns.test_mode import alarms, eventually, running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
SMALL = (
    "from pxed import strangers; strangers.TRUST, strangers.MOST, strangers.AT_ALL = 20, 40, 60\n"
    "strangers.LOG_BURST, strangers.LOG_RATE = 300.0, 0.0\n"
)
"""The log's share of strangers does not grow with the time that a flood takes."""


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
        eventually(lambda: any("were not logged" in text for text in alarms(control)))
        assert len(list(control.follow("/v1/events"))) < 500
        # Known machines keep their addresses; a new one is served although nobody trusts it yet.
        assert {mac: room.boot(mac) for mac in known} == known
        new = machine(77)
        eventually(lambda: room.tries(new))
        eventually(lambda: f"{new.replace(':', '')}.ext4" in files(serve))
        assert control.get(f"/v1/clients/{new}")["state"] == "booting"
        room.close()


def test_a_flood_that_takes_what_it_is_offered(serve: Serve) -> None:
    """Made-up machines that go on to their ACK: addresses, devices and log stay for real ones."""
    requires("udhcpc", "curl")
    host = serve.cable.cli
    host.ip("addr flush dev eth0")
    text = GOOD + '[dhcp]\nrange = "10.77.0.50-10.77.0.69"\n'
    before = SMALL + "strangers.TAKEN = 30\nfrom pxed.dhcp import leases; leases.IDLE = 2.0\n"
    with running(serve, text, before=before) as control:
        room, pid = Room(host), control.get("/v1/status")["pid"]
        seats = {machine(number): room.boot(machine(number)) for number in range(5)}
        for mac, ip in seats.items():
            assert fetch(host, f"{ip}/24") > 0
            room.gives_back(mac, ip)
        eventually(lambda: sum(e["kind"] == "release" for e in control.follow("/v1/events")) == 5)
        before_it = descriptors(pid)
        with taking(room):
            eventually(lambda: bool(full_of(control)))
            done = boots(host)
            full = full_of(control)[-1]
        again = {mac: room.boot(mac) for mac in seats}
        eventually(lambda: descriptors(pid) <= before_it + 2 * (20 + 30) + 5)
        assert len(list(control.follow("/v1/events"))) < 500
        eventually(lambda: len(control.get("/v1/clients")) <= 60 + 5 + 1)
        room.close()
    assert done.returncode == 0, done.stderr
    assert "lease of 10.77.0." in done.stderr + done.stdout
    assert full["unclaimed"] + full["idle"] >= 10  # who holds the pool is told
    assert again == seats


def fetch(host: Namespace, address: str) -> int:
    """How many bytes a machine with this address reads of its boot file: now it is there."""
    host.ip(f"addr add {address} dev eth0")
    try:
        done = host.run(["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{size_download}",
                         "tftp://10.77.0.1/undionly.kpxe"])  # fmt: skip
    finally:
        host.ip(f"addr del {address} dev eth0")
    return int(done.stdout)


@contextmanager
def of_many(
    say: Callable[[Mac], object], pause: float = 0, machines: int = 1 << 16
) -> Iterator[None]:
    """``say`` in the name of one machine after the other that is not there, until the end."""
    stop = threading.Event()

    def flood() -> None:
        number = 0
        while not stop.wait(pause):
            number = (number + 1) % machines
            say(Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def taking(room: Room) -> AbstractContextManager[None]:
    """They go all the way to their ACK, as fast as they are answered."""
    return of_many(room.starves)


def flooding(room: Room) -> AbstractContextManager[None]:
    """A DISCOVER each 5 ms."""
    return of_many(lambda mac: room.say(mac, Type.DISCOVER), 0.005)


def full_of(control: ControlClient) -> list[dict[str, Any]]:
    return [e for e in control.follow("/v1/events") if e["kind"] == "pool-full"]


def boots(host: Namespace) -> "subprocess.CompletedProcess[str]":
    """A new machine, which asks like a PC's firmware until it has an address."""
    asks = ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "50", "-T", "3", "-s", "/bin/true",
            "-V", "PXEClient:Arch:00000:UNDI:002001"]  # fmt: skip
    return host.run(asks, check=False, timeout=200)


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
            done = boots(host)
        room.close()
    assert done.returncode == 0, done.stderr
    assert "lease of 10.77.0." in done.stderr + done.stdout
    assert full["unclaimed"] == full["size"] == 20


def test_a_new_machine_gets_an_address_while_the_same_ones_ask_on(serve: Serve) -> None:
    """A hundred made-up machines that repeat their DISCOVERs for ever, more than there is room."""
    requires("udhcpc")
    host = serve.cable.cli
    host.ip("addr flush dev eth0")
    text = GOOD + '[dhcp]\nrange = "10.77.0.50-10.77.0.69"\n'
    with running(serve, text) as control:
        room = Room(host)
        with of_many(lambda mac: room.say(mac, Type.DISCOVER), 0.002, 100):
            eventually(
                lambda: control.get("/v1/status")["dhcp"].get("received", 0) > 100 * 2 * MANY, 120
            )
            done = boots(host)
        room.close()
    assert done.returncode == 0, done.stderr
    assert "lease of 10.77.0." in done.stderr + done.stdout


def test_an_address_that_says_much_leaves_the_log_to_the_others(serve: Serve) -> None:
    """Half-open transfers in the name of a machine that is known: it has its share and no more."""
    host = serve.cable.cli
    host.ip("addr flush dev eth0")
    before = (
        "from pxed import lives, shares\n"
        "shares.BURST, shares.SPARED, shares.RATE, lives.TELL = 200.0, 50.0, 0.0, 1.0\n"
    )
    with running(serve, GOOD, before=before) as control:
        room = Room(host)
        ip = room.boot(machine(1))
        assert fetch(host, f"{ip}/24") > 0
        host.ip(f"addr add {ip}/24 dev eth0")

        def half_open() -> bool:
            for _ in range(50):
                with host.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                    udp.sendto(encode(Request("undionly.kpxe")), ("10.77.0.1", 69))
            left_out: int = control.get("/v1/status")["events"]["not_logged"]
            return left_out > 500

        eventually(half_open)
        host.ip("addr flush dev eth0")
        room.boot(machine(2))
        room.close()

        def logged() -> list[dict[str, Any]]:
            return list(control.follow("/v1/events"))

        eventually(lambda: any(str(machine(1)) in e.get("text", "") for e in logged()))
        mine = [e for e in logged() if e["mac"] == machine(1) and e["kind"] != "alarm"]
        assert len(mine) <= 200
        assert {"discover", "boot", "stage", "offer", "request", "ack"} <= {
            e["kind"] for e in logged() if e["mac"] == machine(2)
        }


@pytest.mark.parametrize(("name", "port"), [("dhcp", 67), ("tftp", 69)])
def test_what_a_port_lost_is_counted_and_told(serve: Serve, name: str, port: int) -> None:
    """While the server stands still, more comes than its buffer holds."""
    with running(serve, GOOD) as control:
        status = control.get("/v1/status")
        assert status[name]["dropped"] == 0
        os.kill(status["pid"], signal.SIGSTOP)
        try:
            with serve.cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                until = time.monotonic() + 60
                while not lost_at(status["pid"], port):
                    assert time.monotonic() < until
                    for _ in range(1000):
                        udp.sendto(bytes(300), ("10.77.0.1", port))
        finally:
            os.kill(status["pid"], signal.SIGCONT)
        eventually(
            lambda: control.get("/v1/status")[name]["dropped"] == lost_at(status["pid"], port) > 0
        )
        lost = lost_at(status["pid"], port)
        text = f"port {port}/udp: {lost} packets were dropped"
        eventually(lambda: any(text in each for each in alarms(control)))
        shown = subprocess.run(
            [sys.executable, "-m", "pxed", "status", "--state-dir", str(serve.state)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert str(lost) in next(s for s in shown.stdout.splitlines() if "overrun" in s)


def lost_at(pid: int, port: int) -> int:
    """What the kernel counts at this port in the server's namespace."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]]
    return sum(int(row[-1]) for row in rows if int(row[1].split(":")[1], 16) == port)
