"""Secure Boot: firmware with Microsoft's keys loads Debian's shim, GRUB and kernel from us."""

import shutil
from pathlib import Path

import pytest

from pxed.client.debs import fetch_package
from tests.boot.conftest import Room, RoomMaker
from tests.conftest import from_mirror

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]
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
        seat.wait_for("Access Denied|Security Violation", timeout=120)
    finally:
        (root / "shimx64.efi").write_bytes(shim)
        seat.power_off()
