"""Secure Boot: firmware with Microsoft's keys loads Debian's shim, GRUB and kernel from us."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pxed.client.debs import fetch_package
from pxed.lab.qemu import Client
from tests.boot.conftest import Room, RoomMaker
from tests.boot.test_kernel_boot import NO_PXE
from tests.conftest import Cable, from_mirror, requires
from tests.netns.test_mode import dnsmasq

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]
FILES = {
    "shimx64.efi": ("shim-signed", "usr/lib/shim/shimx64.efi.signed"),
    "grubx64.efi": (
        "grub-efi-amd64-signed", "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFTP root with iPXE and the signed chain."""
    root = tmp_path_factory.mktemp("tftp")
    root.chmod(0o755)
    shutil.copyfile("/usr/lib/ipxe/snponly.efi", root / "snponly.efi")
    for name, (package, path) in FILES.items():
        with from_mirror():
            shutil.copyfile(fetch_package(package, "amd64") / path, root / name)
    return root


@pytest.fixture(scope="module")
def room(make_room: RoomMaker, signed: Path) -> Room:
    text = f'[tftp]\nroot = "{signed}"\n[class.x86]\nboot = "kernel"\nsecure_boot = true\n'
    return make_room(text)


def test_a_seat_with_secure_boot_on(room: Room) -> None:
    seat = room.lab.add_client(firmware="secure", memory=768)
    seat.power_on()
    room.server.wait_running(seat, 300)
    # The kernel's own word for it.
    assert "Secure boot enabled" in seat.shell("dmesg | grep -i secure")
    assert "e16.1" in seat.shell("ls /dev/etherd")
    assert "BOOTIF=01-" + seat.mac.replace(":", "-") in seat.shell("cat /proc/cmdline")
    assert room.stages(seat)[-1] == "running"
    events = room.server.control.follow("/v1/events")
    loaded = [e["file"] for e in events if e["kind"] == "tftp-done" and e["mac"] == seat.mac]
    assert [name.rpartition("/")[2] for name in loaded] == [
        "shimx64.efi", "grubx64.efi", "grub.cfg", "vmlinuz", "initrd",
    ]  # fmt: skip
    seat.power_off()


def test_what_is_not_signed_is_not_started(room: Room) -> None:
    """The other direction: this firmware refuses iPXE, and says so."""
    seat = room.lab.add_client(firmware="secure", memory=768)
    root = Path(room.server.config.read_text().split('root = "')[1].split('"')[0])
    shim = (root / "shimx64.efi").read_bytes()
    (root / "shimx64.efi").write_bytes((root / "snponly.efi").read_bytes())
    try:
        seat.power_on()
        seat.wait_for("Access Denied|Security Violation", timeout=300)
    finally:
        (root / "shimx64.efi").write_bytes(shim)
        seat.power_off()


def beside(make_room: RoomMaker, signed: Path, folder: Path, mode: str, *more: str) -> Room:
    """A room with the site's own dnsmasq in it, at 10.77.0.2."""
    requires("dnsmasq")
    text = f'[tftp]\nroot = "{signed}"\n[class.x86]\nboot = "kernel"\nsecure_boot = true\n'
    made = make_room(f'[dhcp]\nmode = "{mode}"\n{text}')
    host = made.lab.add_host("site", "10.77.0.2/24")
    dnsmasq(Cable(host, host), folder, "--no-ping", *more)
    made.server.stop()
    made.server.start()  # which looks for others at once
    until = time.monotonic() + 60
    while not made.server.control.get("/v1/status")["conflicts"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    return made


def events_of(room: Room, seat: Client) -> list[dict[str, Any]]:
    return [e for e in room.server.control.follow("/v1/events") if e["mac"] == seat.mac]


def comes_up(room: Room, *extra: str) -> tuple[Client, list[str], set[str]]:
    """A seat that has come up with Secure Boot on; what it loaded, and from whom its address is."""
    seat = room.lab.add_client(firmware="secure", memory=768, extra=extra)
    seat.power_on()
    room.server.wait_running(seat, 300)
    assert "Secure boot enabled" in seat.shell("dmesg | grep -i secure")
    assert "BOOTIF=01-" + seat.mac.replace(":", "-") in seat.shell("cat /proc/cmdline")
    seat.power_off()
    assert room.server.client(seat.mac)["why"] == ""
    events = events_of(room, seat)
    while "boot" in (kinds := [e["kind"] for e in events[1:]]):
        events = events[1 + kinds.index("boot") :]
    files = [e["file"] for e in events if e["kind"] in ("tftp-done", "http-done")]
    return seat, files, {e["server"] for e in events if e.get("server")}


@pytest.fixture(scope="module")
def proxy(make_room: RoomMaker, signed: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """The site's server names us to UEFI's PXE, as GRUB asks whom that answer names."""
    more = "--dhcp-match=set:uefi,option:client-arch,7", "--dhcp-boot=tag:uefi,,,10.77.0.1"
    return beside(make_room, signed, tmp_path_factory.mktemp("site"), "proxy", *more)


def test_by_http_beside_the_sites_server(proxy: Room) -> None:
    """One disk that the firmware holds in memory: nothing comes by TFTP, no address is ours."""
    seat, files, lessors = comes_up(proxy, *NO_PXE)
    assert files == [f"/secure/{seat.mac.replace(':', '-')}/lab@1.img"]
    assert lessors == {"10.77.0.2"}
    assert not [e for e in events_of(proxy, seat) if e["kind"].startswith("tftp")]
    assert proxy.stages(seat)[:3] == ["DISCOVER", "OFFER", "boot file"]


def test_by_pxe_beside_a_server_that_names_us(proxy: Room) -> None:
    _, files, lessors = comes_up(proxy)
    assert [name.rpartition("/")[2] for name in files] == [
        "shimx64.efi", "grubx64.efi", "grub.cfg", "vmlinuz", "initrd",
    ]  # fmt: skip
    assert lessors == {"10.77.0.2"}


@pytest.mark.long
@pytest.mark.ci
def test_by_pxe_with_an_address_of_ours_beside_the_sites_server(
    make_room: RoomMaker, signed: Path, tmp_path: Path
) -> None:
    room = beside(make_room, signed, tmp_path, "pxe-only")
    _, files, lessors = comes_up(room)
    assert files[:2] == ["shimx64.efi", "grubx64.efi"]
    assert lessors == set()


@pytest.mark.long
@pytest.mark.ci
def test_grub_is_lost_where_the_sites_server_names_nobody(
    make_room: RoomMaker, signed: Path, tmp_path: Path
) -> None:
    """And why is said."""
    room = beside(make_room, signed, tmp_path, "proxy")
    seat = room.lab.add_client(firmware="secure", memory=768)
    seat.power_on()
    until = time.monotonic() + 240
    astray = "looks for grub.cfg where the site's DHCP server says"
    # What was said then, and not what is said last: its firmware goes on.
    while not (said := [e for e in events_of(room, seat) if astray in e.get("why", "")]):
        assert time.monotonic() < until, events_of(room, seat)
        time.sleep(0.5)
    assert said[0]["kind"] == "state"
    assert "next-server" in said[0]["why"]
    seat.power_off()
