"""The DHCP mode at start-up, beside Debian's dnsmasq as the site's DHCP server, and alone."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pxed.control import ControlClient
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve

pytestmark = pytest.mark.netns


@pytest.fixture
def serve(cable: Cable, tmp_path: Path) -> Serve:
    requires("mkfs.ext4", "dnsmasq")
    directory = tmp_path / "state" / "images" / "lab" / "1"
    directory.mkdir(parents=True)
    for name in ("boot.img", "root.img"):
        (directory / name).write_bytes(bytes(8192))
    devices = {"boot": "boot.img", "root": "root.img"}
    data = {"name": "lab", "version": "1", "class": "x86", "devices": devices}
    (directory / "manifest.json").write_text(json.dumps(data))
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    return Serve(cable, tmp_path / "state")


def dnsmasq(
    cable: Cable, folder: Path, *more: str, leases: bool = True
) -> "subprocess.Popen[bytes]":
    """The site's server at the other end of the cable, at 10.77.0.2; it listens on return."""
    said = folder / "dnsmasq.log"
    pool = ["--dhcp-range=10.77.0.100,10.77.0.120,10m"] if leases else []
    with said.open("wb") as log:
        process = cable.cli.popen(
            [
                "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root",
                "--interface=eth0", "--log-dhcp", f"--dhcp-leasefile={folder}/leases",
                *pool, *more,
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    until = time.monotonic() + 60
    while b"DHCP, " not in said.read_bytes():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@contextmanager
def running(serve: Serve, text: str, *, before: str = "") -> Iterator[ControlClient]:
    """The server while the block runs; ``before``: Python that its process runs first."""
    said = serve.state.parent / "serve.log"
    with said.open("wb") as log:
        process = serve.cable.srv.popen(serve.command(text, before), stderr=log)
    socket = serve.state / "control.sock"
    until = time.monotonic() + 60
    while not socket.exists():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    try:
        yield ControlClient(socket, timeout=60)
    finally:
        process.terminate()
        assert process.wait(60) == 0, said.read_text()[-4000:]


def mode_event(control: ControlClient) -> dict[str, Any]:
    return next(e for e in control.follow("/v1/events") if e["kind"] == "mode")


AUTO = GOOD + '[dhcp]\nmode = "auto"\n'
ALL = GOOD + '[dhcp]\nmode = "all"\n'
PATIENT = "from pxed import netboot; netboot.LOOK = 30.0\n"
"""It waits that long for another server's answer at the start, and no longer than it takes."""


@pytest.mark.parametrize("ping", ["--no-ping", "--dhcp-authoritative"])
def test_auto_is_proxy_beside_the_sites_server(serve: Serve, tmp_path: Path, ping: str) -> None:
    """Also where it pings an address for three seconds before it offers it: dnsmasq's default.

    It is known by its answer to the question that comes first, before any that makes it ping.
    """
    dnsmasq(serve.cable, tmp_path, ping)
    with running(serve, AUTO, before=PATIENT) as control:
        status = control.get("/v1/status")
        event = mode_event(control)
    assert (status["dhcp"]["mode"], status["dhcp"]["configured"]) == ("proxy", "auto")
    said = (tmp_path / "dnsmasq.log").read_text()
    assert event["mode"] == "proxy"
    assert "10.77.0.2" in event["why"]
    answers = (word for word in said.split() if word.startswith(("DHCPACK", "DHCPOFFER")))
    assert next(answers).startswith("DHCPACK")


def test_auto_gives_leases_where_nobody_else_does(serve: Serve) -> None:
    with running(serve, AUTO) as control:
        assert control.get("/v1/status")["dhcp"]["mode"] == "pxe-only"
        assert "no other DHCP server" in mode_event(control)["why"]


def test_auto_is_not_misled_by_a_server_that_only_boots(serve: Serve, tmp_path: Path) -> None:
    proxy = ["--dhcp-range=10.77.0.0,proxy", "--pxe-service=x86PC,rival,rival"]
    dnsmasq(serve.cable, tmp_path, *proxy, leases=False)
    quick = "from pxed import netboot; netboot.EVERY = 1.0\n"
    with running(serve, AUTO, before=quick) as control:
        assert control.get("/v1/status")["dhcp"]["mode"] == "pxe-only"
        eventually(lambda: bool(control.get("/v1/status")["conflicts"]))  # and it was heard
        assert {each["what"] for each in control.get("/v1/status")["conflicts"]} == {"boot"}
        assert control.get("/v1/status")["dhcp"]["mode"] == "pxe-only"


def test_all_refuses_beside_another_server_and_names_it(serve: Serve, tmp_path: Path) -> None:
    dnsmasq(serve.cable, tmp_path)
    words = "another DHCP server", "10.77.0.2", "force", "auto"
    serve.refuses(ALL, 1, *words, before=PATIENT)


def test_all_can_be_forced(serve: Serve, tmp_path: Path) -> None:
    dnsmasq(serve.cable, tmp_path)
    with running(serve, ALL + "force = true\n") as control:
        assert control.get("/v1/status")["dhcp"]["mode"] == "all"


def test_the_status_says_which(serve: Serve) -> None:
    with running(serve, AUTO):
        shown = subprocess.run(
            [sys.executable, "-m", "pxed", "status", "--state-dir", str(serve.state)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    assert "pxe-only (auto)" in shown


def eventually(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def modes(control: ControlClient) -> list[str]:
    return [e["mode"] for e in control.follow("/v1/events") if e["kind"] == "mode"]


def alarms(control: ControlClient) -> list[str]:
    return [e["text"] for e in control.follow("/v1/events") if e["kind"] == "alarm"]


def test_auto_follows_a_server_that_turns_up_and_goes(serve: Serve, tmp_path: Path) -> None:
    """Leases while nobody else gives any; a proxy, with its port 4011, while somebody does."""
    stopped = serve.state / "stopped-for-long"
    quick = (
        "import os\n"
        "from pxed import netboot\n"
        "from pxed.conflicts import Conflicts\n"
        "netboot.EVERY, swept = 1.0, Conflicts.swept\n"
        f"late = lambda: 10_000 * os.path.exists({str(stopped)!r})\n"
        "Conflicts.swept = lambda self, now: swept(self, now + late())\n"
    )
    with running(serve, AUTO, before=quick) as control:
        assert modes(control) == ["pxe-only"]
        rival = dnsmasq(serve.cable, tmp_path, "--no-ping")
        eventually(lambda: modes(control) == ["pxe-only", "proxy"])
        assert control.get("/v1/status")["dhcp"]["mode"] == "proxy"
        assert "0.0.0.0:4011" in listening(serve)
        rival.kill()
        rival.wait()
        stopped.touch()
        eventually(lambda: len(modes(control)) == 3)
        assert "0.0.0.0:4011" not in listening(serve)
        said = mode_events(control)
        assert not [text for text in alarms(control) if "machines get no address" in text]
    assert [each["mode"] for each in said] == ["pxe-only", "proxy", "pxe-only"]
    assert "10.77.0.2" in said[1]["why"]
    assert "has turned up" in said[1]["why"]
    assert "no DHCP server answers here any more" in said[2]["why"]


def test_a_fixed_mode_stays_and_says_what_that_means(serve: Serve, tmp_path: Path) -> None:
    with running(serve, ALL) as control:
        dnsmasq(serve.cable, tmp_path, "--no-ping")
        serve.cable.srv.run(["udhcpc", "-i", "eth0", "-B", "-n", "-q", "-f", "-t", "2", "-T", "1",
                             "-s", "/bin/true"], check=False)  # fmt: skip
        eventually(lambda: bool(control.get("/v1/status")["conflicts"]))
        (found,) = control.get("/v1/status")["conflicts"]
        assert control.get("/v1/status")["dhcp"]["mode"] == "all"
    assert found["serious"]
    assert "whoever answers first" in found["consequence"]


def test_proxy_says_that_nobody_gives_addresses(serve: Serve) -> None:
    with running(serve, GOOD + '[dhcp]\nmode = "proxy"\n') as control:
        eventually(lambda: any("machines get no address" in text for text in alarms(control)))


def mode_events(control: ControlClient) -> list[dict[str, Any]]:
    return [e for e in control.follow("/v1/events") if e["kind"] == "mode"]


def listening(serve: Serve) -> str:
    return serve.cable.srv.run(["ss", "-ulnH"]).stdout.replace("%eth0", "")
