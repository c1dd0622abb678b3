"""What happens around a boot: the temporary lease comes back, addresses are mapped to machines, and
solicitations are answered to those that boot here and to nobody else."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aoe_fast.initiator import Initiator
from pxed.control import ControlClient
from pxed.dhcp.codec import Type
from pxed.mac import Mac
from pxed.netboot import GRACE
from tests.conftest import Cable
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_mode import PATIENT, dnsmasq, running, serve
from tests.netns.test_why import Firmware

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
MAC = Mac("52:54:00:00:00:78")
NEVER = "from pxed import app; app.POLL_BUSY = app.POLL_IDLE = 3600.0; "  # are reports looked at


@pytest.fixture
def seat(cable: Cable) -> Cable:
    """The machine at the other end has its MAC, and no address yet."""
    cable.cli.ip("link set eth0 down", f"link set eth0 address {MAC}", "link set eth0 up")
    cable.settle()
    return cable


def events(control: ControlClient) -> list[dict[str, Any]]:
    return [e for e in control.follow("/v1/events") if e.get("mac") == MAC]


def kinds(control: ControlClient) -> list[str]:
    return [each["kind"] for each in events(control)]


def eventually(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def take(seat: Cable) -> None:
    firmware = Firmware(seat.cli, mac=MAC)
    ((_, offer),) = firmware.offers(1).items()
    firmware.take(offer)
    firmware.close()


def report(seat: Cable, text: bytes, line: int = 0) -> None:
    """A line in the report device, as the client's initramfs writes it."""
    with seat.cli.inside(), Initiator("eth0", retries=60) as initiator:
        initiator.write(16, 4, line, text.ljust(512, b"\0"))


def test_a_machine_that_runs_gives_its_temporary_lease_back(serve: Serve, seat: Cable) -> None:
    seat.cli.ip("addr flush dev eth0")
    with running(serve, GOOD) as control:
        take(seat)
        eventually(lambda: "midlayer-ready" in kinds(control))
        report(seat, b"running 2.0 lab")
        eventually(lambda: "release" in kinds(control))
        time.sleep(0.5)
        (runs,) = [e for e in events(control) if e["kind"] == "state" and e["state"] == "running"]
        (release,) = [e for e in events(control) if e["kind"] == "release"]
        assert release["time"] - runs["time"] > GRACE - 0.5  # a clock may be set


def test_one_that_boots_again_meanwhile_keeps_it(serve: Serve, seat: Cable) -> None:
    seat.cli.ip("addr flush dev eth0")
    with running(serve, GOOD) as control:
        take(seat)
        eventually(lambda: "midlayer-ready" in kinds(control))
        report(seat, b"running 2.0 lab")
        eventually(lambda: control.get(f"/v1/clients/{MAC}")["state"] == "running")
        take(seat)
        time.sleep(GRACE + 1)
        said = kinds(control)  # whoever answers has come to its timers
        again = len(said) - said[::-1].index("discover")
        assert "release" not in said[again:]


def test_a_file_in_proxy_mode_is_known_to_be_this_machines(
    serve: Serve, seat: Cable, tmp_path: Path
) -> None:
    """No lease of ours tells whose address it is: the kernel's neighbour table does."""
    proxy = GOOD + '[dhcp]\nmode = "proxy"\n'
    with running(serve, proxy) as control:
        firmware = Firmware(seat.cli, 0, MAC)
        firmware.send(Type.DISCOVER)
        firmware.close()
        eventually(lambda: "offer" in kinds(control))
        seat.cli.ip("addr replace 10.77.0.110/24 dev eth0")
        with seat.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(60)
            udp.sendto(b"\0\1undionly.kpxe\0octet\0", ("10.77.0.1", 69))
            while len(data := udp.recvfrom(1024)) and len(data[0]) == 516:
                udp.sendto(b"\0\4" + data[0][2:4], data[1])
            udp.sendto(b"\0\4" + data[0][2:4], data[1])
        eventually(lambda: "tftp-done" in kinds(control))
        stages = [step["stage"] for step in control.get(f"/v1/clients/{MAC}")["timeline"]]
    assert stages == ["DISCOVER", "OFFER", "boot file"]


def solicit(seat: Cable) -> None:
    """The kernel's own solicitation, as iPXE's: at link-up."""
    seat.cli.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2"])
    seat.cli.ip("link set eth0 down", "link set eth0 up")
    seat.settle()


def test_solicitations_before_the_first_discover(serve: Serve, seat: Cable) -> None:
    """A machine that booted here before is answered before it asks; one that runs is not."""
    seat.srv.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
    seat.cli.ip("addr flush dev eth0")
    with running(serve, GOOD) as control:
        solicit(seat)
        time.sleep(3)
        assert "router-advert" not in kinds(control)  # nobody knows it yet
        take(seat)
        solicit(seat)
        eventually(lambda: "router-advert" in kinds(control))
        eventually(lambda: "midlayer-ready" in kinds(control))
        report(seat, b"running 2.0 lab")
        eventually(lambda: control.get(f"/v1/clients/{MAC}")["state"] == "running")
        before = kinds(control).count("router-advert")
        solicit(seat)
        time.sleep(3)
        assert kinds(control).count("router-advert") == before
        report(seat, b"")


def test_no_advertisement_where_that_is_switched_off(serve: Serve, seat: Cable) -> None:
    seat.cli.ip("addr flush dev eth0")
    with seat.srv.inside():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
    text = GOOD + "[dhcp]\nrouter_advertisement = false\n"
    with raw, running(serve, text) as control:
        take(seat)  # it is in its boot, and known
        raw.bind(("eth0", 0x86DD))
        raw.settimeout(60)
        solicit(seat)
        while (frame := raw.recv(2048))[20] != 58 or frame[54] != 133:
            pass
        take(seat)  # whatever came of it came before this
        assert kinds(control).count("offer") >= 2
        assert "router-advert" not in kinds(control)


def test_auto_mode_follows_through(serve: Serve, seat: Cable, tmp_path: Path) -> None:
    """Beside a real site server: its lease, and our boot information in the same exchange."""
    seat.cli.ip("addr replace 10.77.0.2/24 dev eth0")
    dnsmasq(seat, tmp_path, "--no-ping")
    with running(serve, GOOD + '[dhcp]\nmode = "auto"\n', before=PATIENT) as control:
        assert control.get("/v1/status")["dhcp"]["mode"] == "proxy"
        firmware = Firmware(seat.cli, 0, MAC)
        offers = {str(server): offer for server, offer in firmware.offers(2).items()}
        firmware.close()
    assert str(offers["10.77.0.2"].yiaddr).startswith("10.77.0.1")
    assert str(offers["10.77.0.1"].yiaddr) == "0.0.0.0"
    assert offers["10.77.0.1"].file == b"undionly.kpxe"


def test_what_it_wrote_before_it_began_again_is_of_its_last_boot(serve: Serve, seat: Cable) -> None:
    """Also where the loop comes to the line and to the DISCOVER at once: here it never looks."""
    seat.cli.ip("addr flush dev eth0")
    with running(serve, GOOD, before=NEVER) as control:
        take(seat)
        eventually(lambda: "midlayer-ready" in kinds(control), 60)
        report(seat, b"failed 2.0 it has no disk")
        assert "report" not in kinds(control)
        take(seat)
        told = [e for e in control.follow("/v1/events") if e["kind"] in ("report", "discover")]
        steps = [e.get("step") for e in told]
        assert (steps.count("failed"), steps[-1]) == (1, None)


def test_what_the_log_has_of_a_report_is_not_logged_again(serve: Serve, seat: Cable) -> None:
    """A server that starts in the middle of a boot reads the report from its beginning."""
    seat.cli.ip("addr flush dev eth0")

    def steps(control: ControlClient) -> list[str]:
        return [each["step"] for each in events(control) if each["kind"] == "report"]

    with running(serve, GOOD) as control:
        take(seat)
        eventually(lambda: "midlayer-ready" in kinds(control))
        report(seat, b"kernel 1.0 one")
        report(seat, b"root 2.0 two", 1)
        eventually(lambda: steps(control) == ["kernel", "root"])
    with running(serve, GOOD) as control:
        report(seat, b"running 3.0 lab", 2)
        eventually(lambda: steps(control)[-1] == "running")
        assert steps(control) == ["kernel", "root", "running"]
        shown = control.get(f"/v1/clients/{MAC}")
        assert shown["state"] == "running"


@pytest.mark.parametrize("runs", [True, False], ids=["it runs", "it has said nothing"])
def test_what_it_wrote_when_the_server_ended_is_read_by_the_next(
    serve: Serve, seat: Cable, runs: bool
) -> None:
    seat.cli.ip("addr flush dev eth0")
    with running(serve, GOOD, before=NEVER) as control:
        take(seat)
        eventually(lambda: "midlayer-ready" in kinds(control))
        if runs:
            report(seat, b"running 2.0 lab")
        eventually(lambda: control.get(f"/v1/clients/{MAC}")["state"] == "booting")
    with running(serve, GOOD) as control:
        if not runs:
            with seat.cli.inside(), Initiator("eth0", retries=60) as initiator:
                initiator.read(16, 0, 0, 1)
        eventually(lambda: ("report" if runs else "aoe-read") in kinds(control))
        assert control.get(f"/v1/clients/{MAC}")["state"] == ("running" if runs else "booting")
