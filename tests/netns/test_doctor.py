"""The doctor: finds what keeps clients from booting, and says what to do."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pxed import doctor
from pxed.config import Config
from tests import piroot
from tests.conftest import requires
from tests.netns.site import slowness, vblade
from tests.netns.test_manage import Room, room

__all__ = ["room"]
pytestmark = pytest.mark.netns

PI = '[class.x86]\nimage = "lab"\n[class.rpi]\nimage = "pi"\n'


def findings(room: Room, status: int) -> list[dict[str, Any]]:
    command = [*room.command()[:3], "doctor", "-c", str(room.config), "--json"]
    done = room.cable.srv.run(command, check=False, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    for each in found:
        assert each["grade"] == "ok" or each["todo"], each
    return found


def of(found: list[dict[str, Any]], about: str) -> dict[str, Any]:
    return next(each for each in found if each["about"] == about)


def pi_image(state: Path) -> Path:
    directory = state / "images/pi/1"
    piroot.put_boot(directory / "firmware", b"kernel")
    for name in ("boot.img", "root.img"):
        (directory / name).write_bytes(bytes(8192))
    (directory / "firmware/cmdline.txt").write_text("pxed.shelf=17\n")
    said = {"name": "pi", "version": "1", "class": "rpi", "tree": "firmware",
            "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(said))
    return directory / "firmware"


def test_a_client_of_each_firmware_is_simulated(room: Room) -> None:
    firmware = pi_image(room.state)
    room.start(PI)
    found = findings(room, 0)
    assert {each["about"].split()[0] for each in found if "simulated" in each["about"]} == {
        "bios", "uefi", "http", "ipxe", "rpi",
    }  # fmt: skip
    assert "/ipxe/snponly.efi is there" in of(found, "http client (simulated)")["text"]
    assert "start4.elf" in of(found, "rpi client (simulated)")["text"]
    assert room.control.get("/v1/clients") == []
    (firmware / "start4.elf").unlink()
    assert of(findings(room, 1), "rpi client (simulated)")["grade"] == "BROKEN"


def test_a_boot_disk_that_boots_nothing_is_found(room: Room) -> None:
    path = room.state / "images/lab/1/boot.img"
    path.write_bytes(bytes(8192))
    room.start()
    broken = of(findings(room, 1), "bios client (simulated)")
    assert "is no boot disk" in broken["text"]


def test_ports_that_somebody_has_and_targets_at_our_shelf(room: Room, tmp_path: Path) -> None:
    requires("vblade")
    room.write()
    disk = tmp_path / "other.img"
    disk.write_bytes(bytes(1 << 20))
    vblade(room.cable.cli, 16, 0, disk)
    with (
        slowness(room.cable.cli) as slow,
        room.cable.srv.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken,
    ):
        taken.bind(("", 69))
        found = findings(room, 1)
        while "nobody else has" in of(found, "AoE targets")["text"]:
            assert slow()
            found = findings(room, 1)
    ports = {each["text"].split()[0]: each for each in found if each["about"] == "ports"}
    assert {name: each["grade"] for name, each in ports.items()} == {
        "67/udp": "ok", "69/udp": "BROKEN", "4011/udp": "ok", "80/tcp": "ok",
    }  # fmt: skip
    assert "ss -lnp" in ports["69/udp"]["todo"]
    assert "e16.0 is served by" in of(found, "AoE targets")["text"]


def test_no_image_no_address(room: Room) -> None:
    room.write()
    shutil.rmtree(room.state / "images")
    room.cable.srv.ip("addr flush dev eth0")
    found = findings(room, 1)
    broken = {each["about"] for each in found if each["grade"] == "BROKEN"}
    assert {"address", "image x86"} <= broken


def test_a_range_that_is_not_of_this_subnet(room: Room) -> None:
    """The server would not start with it."""
    room.write('[dhcp]\nrange = "10.78.0.5-10.78.0.9"\n')
    found = of(findings(room, 1), "range")
    assert found["grade"] == "BROKEN"
    assert "10.77.0.0/24" in found["text"]
    room.write('[dhcp]\nrange = "10.77.0.5-10.77.0.9"\n')
    assert "for 5 machines" in of(findings(room, 0), "range")["text"]


def test_an_interface_that_is_not_there_is_said_once(room: Room) -> None:
    room.write()
    room.config.write_text(room.config.read_text().replace("eth0", "eth9"))
    about = [each for each in findings(room, 1) if "'eth9'" in each["text"]]
    assert len(about) == 1


def test_a_narrow_port_below_a_bridge_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, mtu in (("br0", 9000), ("eth1", 1500), ("eth2", 9000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mtu").write_text(f"{mtu}\n")
    for name in ("eth1", "eth2"):
        (tmp_path / "br0" / f"lower_{name}").symlink_to(tmp_path / name)
    monkeypatch.setattr(doctor, "_NET", tmp_path)
    (found,) = doctor.check_path(Config(interface="br0"))
    assert (found.grade, found.todo) == ("BROKEN", "ip link set eth1 mtu 9000")
    (tmp_path / "eth1/mtu").write_text("9000\n")
    (found,) = doctor.check_path(Config(interface="br0"))
    assert found.grade == "ok"
