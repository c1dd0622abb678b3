"""The chain for Secure Boot, switched on and off while the server runs."""

import json
import signal
import socket
from pathlib import Path

import pytest

from pxed.dhcp.codec import BROADCAST_FLAG, Message, Op, Opt, Type, decode, encode
from pxed.mac import Mac
from tests.conftest import requires
from tests.netns.test_manage import M1, M2, M3, Room, room

__all__ = ["room"]

pytestmark = pytest.mark.netns


def offered(room: Room, mac: Mac) -> str:
    """The boot file that UEFI's PXE is offered."""
    options: dict[int, bytes] = {
        Opt.TYPE: bytes((Type.DISCOVER,)), Opt.ARCH: b"\0\x07",
        Opt.VENDOR_CLASS: b"PXEClient:Arch:00007:UNDI:003016",
    }  # fmt: skip
    message = Message(op=Op.REQUEST, xid=7, chaddr=mac, flags=BROADCAST_FLAG, options=options)
    with room.cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        udp.bind(("", 68))
        udp.settimeout(60)
        udp.sendto(encode(message), ("255.255.255.255", 67))
        return decode(udp.recv(2048)).file.decode()


@pytest.fixture
def programs(room: Room) -> Path:
    """A TFTP root in which nothing of the chain is a file yet; the image names its kernel."""
    requires("curl")
    image = room.state / "images/lab/1"
    said = json.loads((image / "manifest.json").read_text())
    said["kernel"] = {"vmlinuz": "boot.img", "initrd": "boot.img", "cmdline": "quiet"}
    (image / "manifest.json").write_text(json.dumps(said))
    folder = room.state.parent / "tftp"
    for name in ("shimx64.efi", "grubx64.efi"):  # directories: what Debian has does not count
        (folder / name).mkdir(parents=True)
    return folder


def text(programs: Path, secure: bool, boot: str = "kernel") -> str:
    word = str(secure).lower()
    return f'[tftp]\nroot = "{programs}"\n[class.x86]\nboot = "{boot}"\nsecure_boot = {word}\n'


def test_secure_boot_is_switched_by_a_reload(room: Room, programs: Path) -> None:
    room.start(text(programs, False))
    assert offered(room, M1) == "snponly.efi"
    room.write(text(programs, True))
    assert "class.x86.secure_boot: False -> True" in room.pxed("config", "reload", "--dry-run")
    said = room.pxed("config", "reload", status=2)
    assert "shimx64.efi.signed and " in said
    assert "missing: install Debian's shim-signed and grub-efi-amd64-signed" in said
    assert offered(room, M1) == "snponly.efi"

    for name in ("shimx64.efi", "grubx64.efi"):
        (programs / name).rmdir()
        (programs / name).write_bytes(name.encode())
    assert "taken over" in room.pxed("config", "reload")
    assert offered(room, M2) == "shimx64.efi"
    got = room.cable.cli.run(["curl", "-sS", "-m", "60", "tftp://10.77.0.1/shimx64.efi"])
    assert got.stdout == "shimx64.efi"

    room.write(text(programs, False))
    assert room.process is not None
    room.process.send_signal(signal.SIGHUP)
    room.until(lambda: room.control.get("/v1/config/diff")["changes"] == [])
    assert offered(room, M3) == "snponly.efi"


def test_secure_boot_without_a_kernel_to_load_is_not_taken_over(room: Room, programs: Path) -> None:
    room.start(text(programs, False, "san"))
    room.write(text(programs, True, "san"))
    assert 'needs boot = "kernel"' in room.pxed("config", "reload", status=2)
    assert offered(room, M1) == "snponly.efi"
