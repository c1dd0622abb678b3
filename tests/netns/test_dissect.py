"""Every packet that we send, through tshark's dissectors: none malformed, no expert error."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed.control import ControlClient
from pxed.dhcp.codec import Message, Op, Opt, Type, encode
from pxed.mac import Mac
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_mode import eventually, running, serve
from tests.netns.test_rpi import DISCOVER_3, DISCOVER_4
from tests.netns.test_why import Firmware

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
MAC = Mac("52:54:00:00:00:79")
LAST = b"the last frame of this recording".ljust(64, b".")


@contextmanager
def recorded(cable: Cable, file: Path) -> Iterator[None]:
    """What goes over the cable, into ``file``."""
    requires("tshark", "tcpdump")
    words = file.with_suffix(".log")
    with words.open("wb") as log:
        dump = cable.cli.popen(["tcpdump", "--immediate-mode", "-i", "eth0", "-U", "-n", "-s0",
                                "-B", "16384",
                                "-w", str(file)],
                               stdout=log, stderr=log)  # fmt: skip
    eventually(lambda: b"listening" in words.read_bytes())
    yield
    # What it has not written yet when it is ended is lost: the last frame of all is ours.
    with cable.srv.inside():
        last = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with last:
        last.bind(("eth0", 0))

        def is_over() -> bool:
            """Said until it is heard: a test may have had the link down a moment ago."""
            last.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x88\xb5" + LAST)
            return LAST in file.read_bytes()

        eventually(is_over)
    dump.terminate()
    dump.wait()


def answered(control: ControlClient, heard: int) -> bool:
    """Whether the server has had so many DHCP messages, and said all that it will to them."""
    counts = control.get("/v1/status")["dhcp"]
    said = counts.get("replies", 0) + counts.get("ignored", 0) + counts.get("malformed", 0)
    return bool(counts.get("received", 0) >= heard and said >= counts["received"])


def tshark(file: Path, filters: str, *fields: str) -> list[str]:
    """One line for each packet that passes ``filters``."""
    wanted = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-Y", filters, "-T", "fields", *wanted],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def blemishes(file: Path, own: str) -> list[str]:
    """Our packets that the dissectors do not like: malformed, or an expert error."""
    bad = f"eth.src == {own} && (_ws.malformed || _ws.expert.severity >= 8388608)"
    return tshark(file, bad, "frame.number", "_ws.col.Protocol", "_ws.expert.message")


def mac_of(cable: Cable) -> str:
    said = cable.srv.run(["ip", "-o", "link", "show", "eth0"]).stdout.split()
    return said[said.index("link/ether") + 1]


def raw_udp(cable: Cable, data: bytes) -> None:
    firmware = Firmware(cable.cli)
    firmware._udp.sendto(data, ("255.255.255.255", 67))
    firmware.close()


@pytest.mark.parametrize("mode", ["pxe-only", "proxy", "all"])
def test_every_packet(serve: Serve, tmp_path: Path, mode: str) -> None:
    requires("tshark", "tcpdump", "curl", "udhcpc")
    cable, file = serve.cable, tmp_path / "wire.pcap"
    cable.cli.ip(f"link set eth0 address {MAC}")
    config = GOOD + f'[dhcp]\nmode = "{mode}"\n[class.x86]\n[class.rpi]\nimage = "pi"\n'
    image = serve.state / "images/pi/1"
    (image / "firmware").mkdir(parents=True)
    text = (serve.state / "images/lab/1/manifest.json").read_text()
    for name in ("boot.img", "root.img"):
        (image / name).write_bytes(bytes(8192))
    text = text.replace('"lab"', '"pi"').replace('"x86"', '"rpi", "tree": "firmware"')
    (image / "manifest.json").write_text(text)
    with recorded(cable, file), running(serve, config) as control:
        for arch in (0, 6, 7, 9):
            firmware = Firmware(cable.cli, arch, MAC)
            for offer in firmware.offers(1).values():
                firmware.take(offer)
            firmware.send(Type.DISCOVER, USER_CLASS=b"iPXE", IPXE=bytes.fromhex("120101130101"))
            firmware.answer(Type.OFFER)
            firmware.close()
        for arch in (11, 16):  # nothing is there for those
            firmware = Firmware(cable.cli, arch, MAC)
            firmware.send(Type.DISCOVER)
            firmware.close()
        for packet in (DISCOVER_3, DISCOVER_4):
            raw_udp(cable, bytes.fromhex(packet))
        eventually(lambda: answered(control, 4 * 3 + 2 + 2))  # a Pi 3 late
        cable.cli.ip("addr replace 10.77.0.2/24 dev eth0")
        for size in ("512", "1432"):
            cable.cli.run(["curl", "-s", "-m", "60", "-o", "/dev/null", "--tftp-blksize", size,
                           "tftp://10.77.0.1/undionly.kpxe"], check=False)  # fmt: skip
        cable.cli.run(["curl", "-s", "-m", "60", "-o", "/dev/null", "tftp://10.77.0.1/missing"],
                      check=False)  # fmt: skip
        cable.cli.run(["curl", "-s", "-m", "60", "-o", "/dev/null",
                       "http://10.77.0.1/ipxe/snponly.efi"], check=False)  # fmt: skip
        cable.cli.run(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "1", "-T", "1",
                       "-s", "/bin/true"], check=False)  # fmt: skip
        cable.cli.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2"])
        cable.cli.ip("link set eth0 down", "link set eth0 up")
        time.sleep(1.5)
    own = mac_of(cable)
    assert blemishes(file, own) == []
    # It was all there to look at.
    answers = tshark(file, f"eth.src == {own} && dhcp.type == 2", "dhcp.option.dhcp")
    assert len(answers) >= 8
    assert len(tshark(file, f"eth.src == {own} && tftp", "tftp.opcode")) > 40
    assert len(tshark(file, f"eth.src == {own} && http.response", "http.response.code")) >= 1
    assert len(tshark(file, f"eth.src == {own} && aoe", "aoe.cmd")) >= 1


def http_client(cable: Cable) -> None:
    """UEFI HTTP boot, whose vendor class is not PXEClient."""
    firmware = Firmware(cable.cli, 16, MAC)
    http = {
        "VENDOR_CLASS": b"HTTPClient:Arch:00016:UNDI:003016",
        "PARAMETERS": bytes(range(1, 129)),
    }
    firmware.send(Type.DISCOVER, **http)
    firmware.send(
        Type.DISCOVER,
        UUID=bytes(17),
        PARAMETERS=bytes(range(1, 129)),
        MAX_SIZE=b"\x02\x40",
        USER_CLASS=b"iPXE",
        IPXE=bytes.fromhex("120101130101"),
    )
    firmware.close()


def boot_service(cable: Cable) -> None:
    """What UEFI and BIOS firmware ask on port 4011."""
    with cable.cli.inside():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.bind(("10.77.0.2", 4011))
        for arch, vendor in ((7, b"PXEClient"), (0, b"PXEClient"), (16, b"HTTPClient")):
            options: dict[int, bytes] = {
                Opt.TYPE: bytes((Type.REQUEST,)),
                Opt.VENDOR_CLASS: vendor + b":Arch:%05d:UNDI:003016" % arch,
                Opt.ARCH: arch.to_bytes(2, "big"),
                Opt.UUID: bytes(17),
                Opt.VENDOR: b"\x47\x04\x80\0\0\0\xff",
            }
            ask = Message(Op.REQUEST, 9, MAC, ciaddr=IPv4Address("10.77.0.2"), options=options)
            udp.sendto(encode(ask), ("10.77.0.1", 4011))


def refused_and_informed(cable: Cable) -> None:
    """A system that comes with an address of another network, and one that only asks."""
    with cable.cli.inside():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        udp.bind(("", 68))
        wrong: dict[int, bytes] = {
            Opt.TYPE: bytes((Type.REQUEST,)),
            Opt.REQUESTED_IP: IPv4Address("192.0.2.7").packed,
        }
        inform: dict[int, bytes] = {
            Opt.TYPE: bytes((Type.INFORM,)),
            Opt.PARAMETERS: bytes((1, 3, 6, 26, 28, 58, 59, 66, 67)),
            Opt.CLIENT_ID: b"\xff\0\1\2\3\0\3\0\1\x52\x54\0\0\0\x79",
        }
        here = IPv4Address("10.77.0.2")
        for message in (
            Message(Op.REQUEST, 10, MAC, options=wrong),
            Message(Op.REQUEST, 11, MAC, ciaddr=here, options=inform),
        ):
            udp.sendto(encode(message), ("255.255.255.255", 67))


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [("pxe-only", {"2"}), ("proxy", {"2", "5"}), ("all", {"2", "5", "6"})],
)  # fmt: skip
def test_the_rarer_packets(serve: Serve, tmp_path: Path, mode: str, kinds: set[str]) -> None:
    """HTTPClient, port 4011, NAK, the answer to INFORM, and options that do not fit (52)."""
    requires("tshark", "tcpdump")
    cable, file = serve.cable, tmp_path / "wire.pcap"
    cable.cli.ip(f"link set eth0 address {MAC}", "addr replace 10.77.0.2/24 dev eth0")
    config = GOOD + f'[dhcp]\nmode = "{mode}"\nrouter = "10.77.0.9"\n'
    config += "dns = [" + ", ".join(f'"10.77.1.{n}"' for n in range(1, 61)) + "]\n"
    with recorded(cable, file), running(serve, config) as control:
        http_client(cable)
        boot_service(cable)
        refused_and_informed(cable)
        eventually(lambda: answered(control, 4 + 3 * (mode == "proxy")))
    own = mac_of(cable)
    assert blemishes(file, own) == []
    answers = tshark(file, f"eth.src == {own} && dhcp.type == 2", "dhcp.option.dhcp",
                     "dhcp.option.vendor_class_id", "dhcp.option.option_overload")  # fmt: skip
    seen = [line.split("\t") for line in answers]
    assert {kind for kind, _, _ in seen} == kinds
    assert "HTTPClient" in {vendor for _, vendor, _ in seen}
    if mode == "all":
        assert {overload for _, _, overload in seen} & {"1", "2", "3"}
