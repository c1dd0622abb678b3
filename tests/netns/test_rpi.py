"""Raspberry Pi 3B+ and 4B against the running server: their packets byte for byte.

No Pi is here. The DISCOVERs are generated from what docs/netboot.md has of their ROMs, and the
files are asked for in the order noted there, each with the options that this Pi sends.
"""

import json
import socket
import struct
from pathlib import Path

import pytest

from pxed.dhcp.codec import Message, Opt, decode
from pxed.lab.netns import Namespace
from pxed.mac import Mac
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_mode import eventually, running
from tests.netns.test_why import failed

pytestmark = pytest.mark.netns

RPI = GOOD + "[class.rpi]\n"
SERIAL_3, SERIAL_4 = "6a1b2c3d", "10f9e8d7"
MAC_3, MAC_4 = "b8:27:eb:1b:2c:3d", "dc:a6:32:f9:e8:d7"
HEAD = "01010600 {xid} 0000 0000 00000000 00000000 00000000 00000000 {mac}" + "00" * 202
COOKIE = "63825363"
# Option 55 as the 3B+'s ROM sends it; 97: the serial, little-endian, four times.
DISCOVER_3 = (
    HEAD.format(xid="26f30339", mac="b827eb1b2c3d") + COOKIE
    + "350101" + "370e 01032b3c4243 80 81 82 83 84 85 86 87"
    + "5d020000" + "5e03010201" + "6111 00" + "3d2c1b6a" * 4
    + "3c20" + b"PXEClient:Arch:00000:UNDI:002001".hex() + "ff"
)  # fmt: skip
# 4B: 97 is "RPi4", board revision, the MAC's tail, serial.
DISCOVER_4 = (
    HEAD.format(xid="8c0d4b3a", mac="dca632f9e8d7") + COOKIE
    + "350101" + "370e 01032b3c4243 80 81 82 83 84 85 86 87"
    + "5d020000" + "5e03010201" + "6111 00 52506934 1431c000 32f9e8d7 d7e8f910"
    + "3c20" + b"PXEClient:Arch:00000:UNDI:002001".hex() + "ff"
)  # fmt: skip
# 5: as the 4B, with its own name; and one whose owner has set another address in its EEPROM.
MAC_5, SERIAL_5 = "2c:cf:67:0a:0b:0c", "5f00c0de"
DISCOVER_5 = (
    HEAD.format(xid="11223344", mac="2ccf670a0b0c") + COOKIE
    + "350101" + "370e 01032b3c4243 80 81 82 83 84 85 86 87"
    + "5d020000" + "5e03010201" + "6111 00 52506935 1741d000 670a0b0c dec0005f"
    + "3c20" + b"PXEClient:Arch:00000:UNDI:002001".hex() + "ff"
)  # fmt: skip
MAC_SET = "02:00:00:aa:bb:cc"
DISCOVER_SET = DISCOVER_4.replace("dca632f9e8d7", "020000aabbcc")
FILES_3 = [
    "bootcode.bin", "bootsig.bin", "S/start.elf", "S/autoboot.txt", "S/config.txt",
    "S/recovery.elf", "S/fixup.dat", "S/dt-blob.bin", "S/bootcfg.txt",
    "S/bcm2710-rpi-3-b-plus.dtb", "S/overlays/overlay_map.dtb", "S/cmdline.txt",
    "S/recovery8.img", "S/recovery7.img", "S/kernel8.img", "S/armstub8-32.bin", "S/initramfs",
]  # fmt: skip
FILES_4 = [
    "S/start4.elf", "S/config.txt", "S/vl805.sig", "S/pieeprom.sig", "S/pieeprom.upd",
    "S/recover4.elf", "S/recovery.elf", "S/fixup4.dat", "S/dt-blob.bin", "S/bootcfg.txt",
    "S/initramfs", "S/bcm2711-rpi-4-b.dtb", "S/overlays/overlay_map.dtb", "S/cmdline.txt",
    "S/recovery8.img", "S/kernel8.img", "S/armstub8-gic.bin",
]  # fmt: skip
THERE = [
    "bootcode.bin", "start.elf", "start4.elf", "config.txt", "fixup.dat", "fixup4.dat",
    "bcm2710-rpi-3-b-plus.dtb", "bcm2711-rpi-4-b.dtb", "overlays/overlay_map.dtb", "cmdline.txt",
    "kernel8.img", "initramfs",
]  # fmt: skip


@pytest.fixture
def serve(cable: Cable, tmp_path: Path) -> Serve:
    requires("mkfs.ext4")
    for name, class_name in (("lab", "x86"), ("pi", "rpi")):
        directory = tmp_path / "state/images" / name / "1"
        (directory / "firmware/overlays").mkdir(parents=True)
        for device in ("boot.img", "root.img"):
            (directory / device).write_bytes(bytes(8192))
        devices = {"boot": "boot.img", "root": "root.img"}
        data = {"name": name, "version": "1", "class": class_name, "devices": devices}
        if class_name == "rpi":
            data["tree"] = "firmware"
        (directory / "manifest.json").write_text(json.dumps(data))
    for file in THERE:
        body = file.encode() * 300
        (tmp_path / "state/images/pi/1/firmware" / file).write_bytes(body)
    return Serve(cable, tmp_path / "state")


def discover(host: Namespace, packet: str) -> Message:
    """Send it, and take the answer off the wire as a ROM does: no kernel has the address yet."""
    return decode(answer(host, packet))


def answer(host: Namespace, packet: str) -> bytes:
    """The bytes of the OFFER."""
    with host.inside():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with udp, raw:
        raw.bind(("eth0", 0x0800))
        raw.settimeout(60)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        udp.bind(("", 68))
        udp.sendto(bytes.fromhex(packet), ("255.255.255.255", 67))
        while True:
            frame = raw.recv(2048)
            if frame[23] == socket.IPPROTO_UDP and frame[36:38] == b"\0\x44":
                return frame[42:]


def fetch(host: Namespace, name: str, blksize: int, *, only_size: bool = False) -> bytes | None:
    """One file as a Pi loads it, None if it is missing; ``only_size``: its tsize probe alone."""
    with host.inside():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.settimeout(60)
        asked = b"\0\1" + name.encode() + b"\0octet\0tsize\0000\0"
        if not only_size:
            asked += b"blksize\0%d\0" % blksize
        udp.sendto(asked, ("10.77.0.1", 69))
        data, server = udp.recvfrom(2048)
        if data[:2] == b"\0\5":
            return None
        assert data[:2] == b"\0\6", data
        options = data[2:].split(b"\0")
        size = int(options[options.index(b"tsize") + 1])
        if only_size:
            udp.sendto(b"\0\5\0\0\0", server)  # error 0: it has seen enough
            return bytes(size)
        body, block = bytearray(), 0
        udp.sendto(struct.pack("!HH", 4, 0), server)
        while True:
            data = udp.recv(2048)
            assert data[:2] in (b"\0\3", b"\0\6"), data
            if data[:4] != struct.pack("!HH", 3, block + 1):
                continue  # said again, as this was slow
            block += 1
            body += data[4:]
            udp.sendto(struct.pack("!HH", 4, block), server)
            if len(data) - 4 < blksize:
                assert len(body) == size
                return bytes(body)


@pytest.mark.parametrize(
    ("packet", "mac", "serial", "files", "blksize"),
    [
        (DISCOVER_3, MAC_3, SERIAL_3, FILES_3, 1024),
        (DISCOVER_4, MAC_4, SERIAL_4, FILES_4, 1468),
        (DISCOVER_4, MAC_4, MAC_4.replace(":", "-"), FILES_4, 1468),
        (DISCOVER_4, MAC_4, "room-7", FILES_4, 1468),
        (DISCOVER_5, MAC_5, SERIAL_5, FILES_4, 1468),
        (DISCOVER_SET, MAC_SET, SERIAL_4, FILES_4, 1468),
    ],
    ids=["3B+", "4B", "4B by MAC", "4B by text", "5", "4B with another address"],
)
def test_a_boot(
    serve: Serve, packet: str, mac: str, serial: str, files: list[str], blksize: int
) -> None:
    host = serve.cable.cli
    host.ip("link set eth0 down", f"link set eth0 address {mac}", "link set eth0 up")
    serve.cable.settle()
    with running(serve, RPI + "[class.x86]\n") as control:
        offer = discover(host, packet)
        host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
        for name in files:
            path = name.replace("S/", f"{serial}/")
            bare = name.removeprefix("S/")
            if bare in ("start.elf", "start4.elf"):
                assert fetch(host, path, blksize, only_size=True) is not None
            want = bare.encode() * 300 if bare in THERE else None
            assert fetch(host, path, blksize) == want, path
        eventually(lambda: len(control.get(f"/v1/clients/{mac}")["timeline"]) == 3)
        shown = control.get(f"/v1/clients/{mac}")
    assert (shown["class"], shown["firmware"], shown["boots"]) == ("rpi", "rpi", 1)
    assert [step["stage"] for step in shown["timeline"]] == ["DISCOVER", "OFFER", "boot file"]
    # The offer, as the ROM wants it.
    assert offer.siaddr == offer.address(Opt.SERVER_ID)
    assert offer.options[Opt.TFTP_SERVER] == b"10.77.0.1"
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"
    assert offer.options[Opt.UUID] == bytes.fromhex(packet).split(b"\x61\x11", 1)[1][:17]
    spaces = b"   " if mac == MAC_3 else b""
    text = b"Raspberry Pi Boot" + spaces
    assert offer.options[Opt.VENDOR] == (
        b"\x06\x01\x03\x0a\x04\x00PXE\x09" + bytes((len(text) + 3, 0, 0, len(text))) + text
        + b"\xff"
    )  # fmt: skip


def test_a_class_without_a_boot_directory_is_refused(serve: Serve) -> None:
    manifest = serve.state / "images/pi/1/manifest.json"
    data = json.loads(manifest.read_text())
    del data["tree"]
    manifest.write_text(json.dumps(data))
    serve.refuses(RPI, 2, "pi@1", "no boot directory", '"tree"')


def test_the_offers_byte_for_byte(serve: Serve) -> None:
    """Both ROMs' OFFERs, whole: header, options in their order, padding."""
    text = b"Raspberry Pi Boot".hex()
    serve.cable.cli.ip("addr flush dev eth0")
    with running(serve, RPI + "[class.x86]\n"):
        for mac, packet, menu, xid in (
            (MAC_3, DISCOVER_3, "0917 000014" + text + "202020", "26f30339"),
            (MAC_4, DISCOVER_4, "0914 000011" + text, "8c0d4b3a"),
        ):
            got = answer(serve.cable.cli, packet)
            ip = got[16:20].hex()
            uuid = bytes.fromhex(packet).split(b"\x61\x11", 1)[1][:17].hex()
            vendor = bytes.fromhex("060103 0a0400505845" + menu + "ff")
            options = (
                "350102" + "36040a4d0001" + "330400000258" + "0104ffffff00"
                + "4209" + b"10.77.0.1".hex() + "3c09" + b"PXEClient".hex()
                + f"2b{len(vendor):02x}" + vendor.hex() + "6111" + uuid + "ff"
            )  # fmt: skip
            head = (
                f"02010600 {xid} 0000 0000 00000000 {ip} 0a4d0001 00000000"
                + mac.replace(":", "") + "00" * 10
                + b"10.77.0.1".ljust(64, b"\0").hex() + "00" * 128 + COOKIE
            )  # fmt: skip
            assert got == bytes.fromhex(head + options).ljust(300, b"\0"), mac


def test_files_of_one_machine_alone(serve: Serve) -> None:
    """A directory with its serial number holds some of its files; the rest are everybody's."""
    own = serve.state / "images/pi/1/firmware" / SERIAL_4
    own.mkdir()
    (own / "config.txt").write_bytes(b"for this one alone")
    host = serve.cable.cli
    host.ip("link set eth0 down", f"link set eth0 address {MAC_4}", "link set eth0 up")
    serve.cable.settle()
    with running(serve, RPI + "[class.x86]\n"):
        offer = discover(host, DISCOVER_4)
        host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
        assert fetch(host, f"{SERIAL_4}/config.txt", 1468) == b"for this one alone"
        assert fetch(host, "config.txt", 1468) == b"config.txt" * 300
        assert fetch(host, f"{SERIAL_4}/cmdline.txt", 1468) == b"cmdline.txt" * 300
        assert fetch(host, f"{SERIAL_3}/config.txt", 1468) == b"config.txt" * 300


def test_without_start4_it_looks_in_the_root_and_is_told_of(serve: Serve) -> None:
    """Neither start4.elf nor start.elf below its prefix: it asks again without one, and stops."""
    for name in ("start.elf", "start4.elf"):
        (serve.state / "images/pi/1/firmware" / name).unlink()
    host = serve.cable.cli
    host.ip("link set eth0 down", f"link set eth0 address {MAC_4}", "link set eth0 up")
    serve.cable.settle()
    with running(serve, RPI + "[class.x86]\n") as control:
        offer = discover(host, DISCOVER_4)
        host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
        for name in ("start4.elf", "start.elf"):
            assert fetch(host, f"{SERIAL_4}/{name}", 1468) is None
        for name in ("start4.elf", "start.elf"):
            assert fetch(host, name, 1468) is None
        shown = failed(control, Mac(MAC_4))
    assert "it found none of its files; the last it asked for was start.elf" in shown["why"]
    assert "boot directory of its image" in shown["why"]
