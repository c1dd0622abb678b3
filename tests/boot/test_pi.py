"""A Raspberry Pi's boot as far as it goes without one: its packets, its files, its kernel's start.

What a Pi's firmware does is done here step by step: the recorded DISCOVER, then each file by TFTP.
What it would start then QEMU's arm64 board starts, with Debian's arm64 kernel and its aoe.ko.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pxed import pi
from pxed.client.debs import fetch_package
from pxed.client.kernel import Kernel
from pxed.client.raspios import build_raspios
from pxed.lab.arm import ArmClient
from pxed.lab.lab import Lab
from pxed.lab.server import LabServer
from tests import piroot
from tests.boot.test_kernel_boot import NO_PXE
from tests.conftest import from_mirror, requires
from tests.netns.test_rpi import DISCOVER_4, MAC_4, SERIAL_4, discover, fetch

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image like Raspberry Pi OS's, of Debian's arm64 kernel and busybox."""
    requires("qemu-system-aarch64", "mksquashfs", "xz", "depmod", "apt-get", "mcopy", "mkfs.fat")
    with from_mirror():
        package = fetch_package("linux-image-arm64", "arm64")
        programs = fetch_package("busybox", "arm64"), fetch_package("libc6", "arm64")
    (modules,) = (package / "lib/modules").iterdir()
    kernel = Kernel(package, modules.name)
    work = tmp_path_factory.mktemp("pi")
    root = work / "root"
    piroot.put_boot(root / "boot/firmware", kernel.vmlinuz.read_bytes())
    piroot.put_modules(root, kernel, kernel.release)
    shutil.copyfile(
        package / f"boot/config-{kernel.release}", root / f"boot/config-{kernel.release}"
    )
    shutil.copytree(programs[1] / "lib", root / "lib", dirs_exist_ok=True, symlinks=True)
    piroot.put_system(root, {"bin/busybox": (programs[0] / "bin/busybox").read_bytes()})
    made = work / "images/1"
    words = "console=ttyAMA0 loglevel=3"
    assert build_raspios(made, root, name="pi", version="1", cmdline=words, uefi=True) == []
    return made


@dataclass
class Room:
    """A lab with our server and one Pi."""

    lab: Lab
    server: LabServer
    seat: ArmClient

    def load(self) -> str:
        """Everything that a 4B's firmware does before it starts the kernel; the command line."""
        host = self.lab.hosts["firmware"]
        host.ip("link set eth0 up")
        self.lab.wait_link("firmware")
        offer = discover(host, DISCOVER_4)
        host.ip(f"addr add {offer.yiaddr}/24 dev eth0")
        try:
            files = {}
            for name in ("start4.elf", "config.txt", "cmdline.txt"):
                files[name] = fetch(host, f"{SERIAL_4}/{name}", 1468)
                assert files[name] is not None, name
            said = pi.settings((files["config.txt"] or b"").decode(), "4B")
            initramfs, how = said["initramfs"].split()
            assert (said["arm_64bit"], how) == ("1", "followkernel")
            kernel = fetch(host, f"{SERIAL_4}/{said['kernel']}", 1468)
            packed = fetch(host, f"{SERIAL_4}/{initramfs}", 1468)
        finally:
            host.ip("addr flush dev eth0", "link set eth0 down")
        assert kernel is not None
        assert packed is not None
        cmdline = (files["cmdline.txt"] or b"").decode().strip()
        self.seat.load(kernel, packed, cmdline)
        return cmdline

    def boot(self) -> None:
        # What ran has the firmware's address: a word of it, and the switch sends it all the rest.
        self.seat.power_off()
        self.load()
        self.seat.power_on()
        self.server.wait_running(self.seat, 200)


def make_room(lab: Lab, image: Path, more: str = "", memory: int = 512) -> Room:
    """Our server with ``image`` in a lab, and a Pi that is off."""
    state = lab.directory / "state"
    shutil.copytree(image, state / "images/pi/1")
    server = LabServer(lab, state, f"{more}[class.rpi]\n")
    server.start()
    host = lab.add_host("firmware")
    host.ip("link set eth0 down", f"link set eth0 address {MAC_4}")
    seat = lab.add_client(kind=ArmClient, name="pi-01", mac=MAC_4, memory=memory)
    assert isinstance(seat, ArmClient)
    return Room(lab, server, seat)


@pytest.fixture(scope="module")
def room(image: Path) -> Iterator[Room]:
    with Lab() as lab:
        made = make_room(lab, image)
        made.boot()
        yield made


def test_the_server_saw_every_step(room: Room) -> None:
    shown = room.server.client(MAC_4)
    stages = [step["stage"] for step in shown["timeline"]]
    # The kernel looks for partitions on its disks before or after it says that it is there.
    assert [stage for stage in stages if stage != "first AoE read"] == [
        "DISCOVER", "OFFER", "boot file", "kernel up", "root mounted", "/config mounted", "running",
    ]  # fmt: skip
    assert (shown["class"], shown["state"], shown["image"]) == ("rpi", "running", "pi@1")


def test_its_disks_are_at_the_addresses_of_its_class(room: Room) -> None:
    mounts = room.seat.shell("cat /proc/mounts")
    assert "root / overlay rw" in mounts
    assert "/dev/etherd/e17.3 /config ext4 rw" in mounts
    disks = room.seat.shell("ls /sys/block").split()
    assert [d for d in disks if d.startswith("etherd")] == [
        "etherd!e17.0", "etherd!e17.1", "etherd!e17.3", "etherd!e17.4",
    ]  # fmt: skip
    assert room.seat.shell("uname -m").strip() == "aarch64"


def test_it_is_a_seat_and_no_longer_one_card(room: Room) -> None:
    said = room.seat.shell("cat /etc/hostname; grep -c PARTUUID /etc/fstab; ls /boot /var/log")
    assert said.split()[:2] == ["seat-" + MAC_4.replace(":", "-"), "0"]
    assert "boot.log" not in said
    assert "degraded" not in room.seat.shell("ls /run/pxed")
    assert MAC_4 in room.seat.shell("cat /run/systemd/network/05-pxed-eth0.network")
    # The root's udev is not to rename a card that is up: it would wait for that for ever.
    assert 'NAME="eth0"' in room.seat.shell("cat /run/udev/rules.d/98-pxed-eth0.rules")


def test_what_it_wrote_is_there_after_its_next_boot(room: Room) -> None:
    room.seat.shell("echo precious > /root/mine && sync")
    room.boot()
    assert room.seat.shell("cat /root/mine") == "precious\n"
    assert room.server.client(MAC_4)["boots"] == 2


@pytest.mark.parametrize(
    ("how", "extra", "loaded"),
    [
        ("pxe", (), "pi@1.efi"),
        pytest.param("http", NO_PXE, "/image/pi@1/pxed.efi", marks=pytest.mark.long),
    ],
)
def test_uefi_on_arm64_boots_the_same_image(
    room: Room, how: str, extra: tuple[str, ...], loaded: str
) -> None:
    """AAVMF's own PXE or HTTP boot loads kernel, initramfs and command line as one: no iPXE."""
    if not Path("/usr/share/AAVMF/AAVMF_CODE.fd").is_file():
        pytest.skip("needs qemu-efi-aarch64: run script/bootstrap --test")
    room.seat.power_off()
    seat = room.lab.add_client(kind=ArmClient, name=f"arm-{how}", firmware="uefi", extra=extra)
    seat.power_on()
    room.server.wait_running(seat, 200)
    shown = room.server.client(seat.mac)
    stages = [step["stage"] for step in shown["timeline"] if step["stage"] != "first AoE read"]
    assert stages == [
        "DISCOVER", "OFFER", "boot file", "kernel up", "root mounted", "/config mounted", "running",
    ]  # fmt: skip
    assert shown["timeline"][2]["detail"] == loaded
    assert (shown["class"], shown["image"]) == ("rpi", "pi@1")
    assert "/dev/etherd/e17.3 /config ext4 rw" in seat.shell("cat /proc/mounts")
    seat.power_off()


@pytest.mark.long
@pytest.mark.ci
def test_uefi_on_arm64_by_debians_newer_ipxe(image: Path, tmp_path: Path, newer_ipxe: Path) -> None:
    """Without a program of its own the image's kernel is loaded by iPXE, over HTTP."""
    if not Path("/usr/share/AAVMF/AAVMF_CODE.fd").is_file():
        pytest.skip("needs qemu-efi-aarch64: run script/bootstrap --test")
    plain = tmp_path / "image"
    shutil.copytree(image, plain)
    said = json.loads((plain / "manifest.json").read_text())
    (plain / said.pop("efi")).unlink()
    (plain / "manifest.json").write_text(json.dumps(said))
    with Lab() as lab:
        shutil.copytree(plain, lab.directory / "state/images/pi/1")
        shutil.copytree(newer_ipxe, lab.directory / "state/ipxe")
        server = LabServer(lab, lab.directory / "state", "[class.rpi]\n")
        server.start()
        seat = lab.add_client(kind=ArmClient, name="arm-ipxe", firmware="uefi")
        seat.power_on()
        server.wait_running(seat, 200)
        assert server.stages(seat.mac)[:4] == ["DISCOVER", "OFFER", "boot file", "iPXE"]
        loaded = [e["file"] for e in server.control.follow("/v1/events")
                  if e["kind"] in ("tftp-done", "http-done")]  # fmt: skip
        assert loaded == [
            "snponly-arm64.efi", "autoexec.ipxe",
            "/boot/pi@1.ipxe", "/image/pi@1/vmlinuz", "/image/pi@1/initrd",
        ]  # fmt: skip
        assert "/dev/etherd/e17.3 /config ext4 rw" in seat.shell("cat /proc/mounts")
