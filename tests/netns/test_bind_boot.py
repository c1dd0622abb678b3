"""``[security]`` on the wire: private devices bound to the lease, one address at two places."""

import json
import socket
import time
from pathlib import Path

import pytest

from aoe_fast.initiator import Initiator, NoAnswer
from pxed.mac import mac_bytes
from tests.aoe_peer import eventually
from tests.conftest import requires
from tests.netns.conftest import GOOD, Serve

pytestmark = pytest.mark.netns

SEAT = "02:00:00:00:00:11"
PXE = ("-V", "PXEClient:Arch:00000:UNDI:002001")


def initiator() -> Initiator:
    return Initiator("eth0", source_mac=mac_bytes(SEAT), timeout=0.2, retries=1)


def be_seat(serve: Serve) -> None:
    serve.cable.cli.ip(f"link set eth0 address {SEAT}")


def say(serve: Serve, *options: bytes) -> None:
    """One DHCP message of a firmware; ``options`` begin with its type."""
    message = bytes([1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0]) + bytes(16) + mac_bytes(SEAT)
    message += bytes(202) + bytes.fromhex("63825363") + b"".join(options) + bytes([60, 32])
    message += b"PXEClient:Arch:00000:UNDI:002001" + bytes([93, 2, 0, 0, 94, 3, 1, 2, 1, 255])
    with serve.cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        udp.bind(("", 68))
        udp.sendto(message, ("255.255.255.255", 67))


def discover(serve: Serve) -> None:
    """One DISCOVER; the server has heard it when this returns."""
    before = len(events(serve, "discover"))
    say(serve, bytes([53, 1, 1]))
    assert eventually(lambda: len(events(serve, "discover")) > before)


def lease(serve: Serve) -> None:
    requires("udhcpc")
    serve.cable.cli.run(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "50", "-T", "1",
                         "-s", "/bin/true", *PXE], check=True)  # fmt: skip


def has_config(serve: Serve) -> bool:
    with serve.cable.cli.inside(), initiator() as mine:
        try:
            mine.identify(16, 3)
        except NoAnswer:
            return False
        return True


def events(serve: Serve, kind: str) -> list[dict[str, object]]:
    done = serve.cable.srv.run(
        [*serve.command(GOOD)[:3], "event", "--json", "--state-dir", str(serve.state)]
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [each for each in found if each["kind"] == kind]


@pytest.mark.parametrize("bind", [False, True])
def test_private_devices_wait_for_the_lease(serve: Serve, bind: bool) -> None:
    serve.start(GOOD + f"[security]\nbind_boot = {str(bind).lower()}\n")
    be_seat(serve)
    discover(serve)
    assert eventually(lambda: events(serve, "midlayer-ready"))
    if bind:
        assert not has_config(serve)
    else:
        assert eventually(lambda: has_config(serve))
    lease(serve)
    assert eventually(lambda: has_config(serve))


def test_a_made_up_discover_takes_nothing_from_a_machine_that_runs(serve: Serve) -> None:
    serve.start(GOOD + "[security]\nbind_boot = true\n")
    be_seat(serve)
    lease(serve)
    assert eventually(lambda: has_config(serve))
    discover(serve)
    assert eventually(lambda: has_config(serve))
    time.sleep(0.5)
    assert eventually(lambda: has_config(serve))


def test_one_address_at_two_places_raises_an_alarm(serve: Serve, tmp_path: Path) -> None:
    serve.start()
    be_seat(serve)
    lease(serve)
    assert not [each for each in events(serve, "alarm") if "two machines" in str(each["text"])]
    with serve.cable.cli.inside(), Initiator("eth0", source_mac=mac_bytes(SEAT)) as mine:
        mine.write(16, 3, 8, b"x" * 512)
        discover(serve)
        time.sleep(0.1)
        mine.read(16, 3, 8, 1)  # the system goes on while its firmware seems to ask
        (*_, given) = events(serve, "offer")
        address = socket.inet_aton(str(given["ip"]))
        server = socket.inet_aton("10.77.0.1")
        say(serve, bytes([53, 1, 3]), bytes([50, 4]) + address, bytes([54, 4]) + server)
    assert eventually(
        lambda: any("two machines" in str(each["text"]) for each in events(serve, "alarm"))
    )
