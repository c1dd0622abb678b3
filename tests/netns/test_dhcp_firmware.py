"""DHCP, TFTP and router advertisements with real firmware in QEMU, up to iPXE's next step.

No AoE server runs: what is shown is that the firmware takes our answers, in each mode.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed.dhcp.bootplan import BOOT_FILES, BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.events import Event, Kind
from pxed.lab.lab import Lab
from pxed.lab.qemu import Firmware as Machine
from pxed.mac import Mac
from pxed.net.dhcp import DhcpServer
from pxed.net.link import look_up
from pxed.net.ra import RouterAdvertiser
from pxed.net.tftp import TftpServer
from pxed.net.thread import LoopThread
from pxed.tftp.files import Files
from tests.conftest import Cable, requires
from tests.netns.test_mode import dnsmasq

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]
IPXE = Path("/usr/lib/ipxe")
SCRIPT = b"#!ipxe\necho script runs\nsleep 60\n"


def plan(
    mac: Mac, firmware: Firmware, arch: int | None, features: frozenset[int]
) -> BootPlan | None:
    return BootPlan(BOOT_FILES.get(arch or 0), script="next.ipxe")


@pytest.fixture
def lab() -> Iterator[Lab]:
    requires("qemu-system-x86_64")
    if not (IPXE / "snponly.efi").exists():
        pytest.skip("needs Debian's ipxe: run script/bootstrap")
    with Lab() as made:
        yield made


@contextmanager
def serving(lab: Lab, mode: Mode) -> Iterator[list[Event]]:
    events: list[Event] = []
    server = IPv4Address("10.77.0.1")
    with LoopThread(lab.server.inside()) as thread:

        async def start() -> list[DhcpServer | TftpServer | RouterAdvertiser]:
            link = look_up("eth0")
            leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.60"))
            policy = Policy(Settings(mode, server, 24), leases, plan)
            files = Files(IPXE, virtual={"next.ipxe": SCRIPT})
            services: list[DhcpServer | TftpServer | RouterAdvertiser] = [
                DhcpServer(link, policy, events.append),
                TftpServer(link, files.open, events.append),
                RouterAdvertiser(link, lambda mac: True, events.append),
            ]
            for service in services:
                await service.start()
            return services

        services = thread.call(start())
        try:
            yield events
        finally:
            for service in services:
                thread.call(service.close())


def wait(events: list[Event], what: Callable[[Event], bool], seconds: float = 300) -> Event:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for event in list(events):
            if what(event):
                return event
        time.sleep(0.1)
    shown = "\n".join(f"{event.kind} {dict(event.detail)}" for event in events)
    raise AssertionError(f"it did not come; what came was:\n{shown}")


def script_loaded(event: Event) -> bool:
    return event.kind is Kind.TFTP_DONE and event.detail["file"] == "next.ipxe"


@pytest.mark.parametrize("machine", ["bios", "uefi"])
def test_pxe_only(lab: Lab, machine: Machine) -> None:
    with serving(lab, Mode.PXE_ONLY) as events:
        lab.add_client(firmware=machine, memory=256).power_on()
        wait(events, script_loaded)
        kinds = [event.kind for event in events]  # before the end, which cuts off what may repeat
    assert Kind.NAK not in kinds
    assert Kind.TFTP_FAILED not in kinds


@pytest.mark.parametrize("machine", ["bios", "uefi"])
def test_proxy_beside_another_dhcp_server(lab: Lab, machine: Machine) -> None:
    requires("dnsmasq")
    site = lab.add_host("site", "10.77.0.2/24")
    dnsmasq(Cable(lab.server, site), lab.directory)
    with serving(lab, Mode.PROXY) as events:
        lab.add_client(firmware=machine, memory=256).power_on()
        done = wait(events, script_loaded)
        kinds = [event.kind for event in events]
    assert str(done.detail["ip"]).startswith("10.77.0.1")  # dnsmasq's range: .100 to .120
    assert Kind.TFTP_FAILED not in kinds
