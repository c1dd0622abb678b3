"""A room where every seat stops in another way, all at once, and what is said of each.

Each seat is a namespace on one switch whose firmware is played as far as it comes: DHCP by raw
packets, TFTP and AoE by real clients. The switch drops what a switch or a firewall would.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from aoe_fast.initiator import Initiator
from pxed.control import ControlClient
from pxed.dhcp.codec import Type
from pxed.errors import UsageError
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve, make_state
from tests.netns.test_mode import running
from tests.netns.test_why import Firmware
from tests.unit.test_dhcp_solicit6 import OVMF, frame

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]
IPXE = {"USER_CLASS": b"iPXE", "IPXE": bytes.fromhex("120101130101240101")}
# The waits that are long, since firmware and spanning tree may be slow, are shorter here.
QUICK = "from pxed import why; why.NO_IPXE, why.NO_AOE = 12.0, 10.0\n"
LIMIT = 120.0
TABLE = (
    "add table bridge filter;"
    " add chain bridge filter forward { type filter hook forward priority 0; }"
)

# What is said, by seat; each word must be there.
SAID = {
    "silent": ("never asked for snponly.efi", "open port 69/udp"),
    "firewall": ("never asked for snponly.efi", "firewall"),
    "untaken": ("did not take our offer", "DHCP snooping"),
    "probe": ("asked for the size of snponly.efi", "MTU"),
    "unsigned": ("loaded snponly.efi and was not heard again", "Secure Boot"),
    "bios": ("loaded undionly.kpxe and was not heard again", "portfast"),
    "vlan": ("no AoE frame of its arrived", "0x88A2"),
    "mtu": ("found its AoE disk and never read from it", "MTU"),
    "missing": ("asked for ipxe-i386.efi, which is not here", "build it from iPXE's source"),
    "alien": ("no boot file for architecture 39 (64-bit LoongArch UEFI)",),
    "pi": ("no image for its class, rpi", "[class.rpi]"),
    "ipv6": ("by IPv6 only", "IPv4"),
    "unplugged": ("loading snponly.efi stopped", "cable"),
}
ARCH = {"bios": 0, "pi": 0, "missing": 6, "alien": 39}


@dataclass
class Room:
    """What the server said in the end."""

    seats: dict[str, dict[str, Any]]
    shown: dict[str, str]


def mac_of(seat: str) -> Mac:
    head = "dc:a6:32:00:00" if seat == "pi" else "52:54:00:00:0b"
    return Mac(f"{head}:{list(SAID).index(seat):02x}")


def tftp(host: Namespace, name: str, seconds: int = 60) -> None:
    url = f"tftp://10.77.0.1/{name}"
    subprocess.run(
        host.command(["curl", "-s", "-m", str(seconds), "-o", "/dev/null", url]), check=False
    )


def rrq(host: Namespace, reply: bytes) -> None:
    """Ask for the boot file with its size, and answer the OACK with ``reply``."""
    with host.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(60)
        udp.sendto(b"\0\1snponly.efi\0octet\0tsize\0000\0", ("10.77.0.1", 69))
        udp.sendto(reply, udp.recvfrom(1500)[1])


def state_of(control: ControlClient, seat: str) -> str:
    with contextlib.suppress(UsageError):  # nobody has heard of it yet
        return str(control.get(f"/v1/clients/{mac_of(seat)}")["state"])
    return ""


def play(seat: str, host: Namespace, control: ControlClient) -> None:
    """The seat's boot, as far as it comes."""
    mac, arch = mac_of(seat), ARCH.get(seat, 7)
    if seat == "ipv6":
        with host.inside():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with raw:
            raw.bind(("eth0", 0))
            own = bytes.fromhex(mac.replace(":", ""))
            until = time.monotonic() + LIMIT
            while state_of(control, seat) != "failed" and time.monotonic() < until:
                asked = frame(OVMF)
                raw.send(asked[:6] + own + asked[12:])
                time.sleep(2)
        return
    firmware = Firmware(host, arch, mac)
    if seat in ("alien", "pi"):
        firmware.send(Type.DISCOVER, **({"UUID": b"\0RPi4" + bytes(12)} if seat == "pi" else {}))
        firmware.close()
        return
    ((_, offer),) = firmware.offers(1).items()
    if seat == "untaken":
        firmware.close()
        return
    firmware.take(offer)
    firmware.answer(Type.ACK)
    host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
    match seat:
        case "firewall":
            tftp(host, "snponly.efi", 5)
        case "unsigned":
            tftp(host, "snponly.efi")
        case "bios":
            tftp(host, "undionly.kpxe")
        case "missing":
            tftp(host, "ipxe-i386.efi")
        case "probe":
            rrq(host, b"\0\5\0\x08enough\0")
        case "unplugged":
            rrq(host, b"\0\4\0\0")
        case "vlan" | "mtu":
            firmware.send(Type.DISCOVER, **IPXE)
            firmware.send(Type.REQUEST, SERVER_ID=offer.options[54],
                          REQUESTED_IP=offer.yiaddr.packed, **IPXE)  # fmt: skip
            firmware.answer(Type.ACK)
            with host.inside(), Initiator("eth0") as initiator:
                initiator.discover(16, 0, wait=1.0)
    firmware.close()


def drop(lab: Lab, port: str, rule: str) -> None:
    """The switch drops what ``rule`` describes, coming from ``port``."""
    lab.switch.run(["nft", f"add rule bridge filter forward iifname {port} {rule} drop"])


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    requires("nft", "curl", "mkfs.ext4")
    state = make_state(tmp_path_factory.mktemp("room"))
    with Lab() as lab:
        serve = Serve(Cable(lab.server, lab.server), state)
        lab.switch.run(["nft", TABLE])
        hosts = {}
        for seat in SAID:
            hosts[seat] = lab.add_host(seat)
            hosts[seat].ip(f"link set eth0 address {mac_of(seat)}")
            if seat == "firewall":
                drop(lab, f"veth{len(lab.hosts)}", "udp dport 69")
            if seat == "vlan":
                drop(lab, f"veth{len(lab.hosts)}", "ether type 0x88a2")
        with running(serve, GOOD, before=QUICK) as control:
            with ThreadPoolExecutor(len(hosts)) as pool:
                list(pool.map(lambda seat: play(seat, hosts[seat], control), hosts))
            yield ended(control, serve, hosts)


def ended(control: ControlClient, serve: Serve, hosts: dict[str, Namespace]) -> Room:
    """Wait until the server has given all of them up."""
    until = time.monotonic() + LIMIT
    while any(state_of(control, seat) != "failed" for seat in hosts):
        if time.monotonic() > until:
            break
        time.sleep(0.25)
    seats = {seat: control.get(f"/v1/clients/{mac_of(seat)}") for seat in hosts}
    program = serve.command(GOOD)[:3]
    shown = {
        seat: subprocess.run(
            [*program, "client", "show", mac_of(seat), "--state-dir", str(serve.state)],
            capture_output=True, text=True, check=True,
        ).stdout
        for seat in hosts
    }  # fmt: skip
    return Room(seats, shown)


@pytest.mark.parametrize("seat", SAID)
def test_the_reason(room: Room, seat: str) -> None:
    assert room.seats[seat]["state"] == "failed", room.shown[seat]
    for words in SAID[seat]:
        assert words in room.seats[seat]["why"]


@pytest.mark.parametrize("seat", SAID)
def test_what_a_person_is_shown(room: Room, seat: str) -> None:
    """The cause on one line, what to do on the next, and then what was seen, oldest first."""
    print(room.shown[seat])
    lines = room.shown[seat].splitlines()
    assert any(line.startswith("why ") for line in lines)
    assert any(line.startswith("do ") for line in lines)
    seen = lines[lines.index("AFTER       SEEN") + 1 :]
    first = "asks for a network boot by IPv6" if seat == "ipv6" else "asks for an address"
    assert first in seen[0]


def test_each_has_a_timeline(room: Room) -> None:
    stages = {
        seat: [step["stage"] for step in each["timeline"]] for seat, each in room.seats.items()
    }
    assert stages["alien"] == stages["pi"] == ["DISCOVER"]
    assert stages["silent"] == ["DISCOVER", "OFFER"]
    assert stages["unsigned"] == ["DISCOVER", "OFFER", "boot file"]
    assert stages["vlan"][-1] == "iPXE"
