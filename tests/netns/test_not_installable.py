"""What cannot be installed on local disks is refused where it is ordered, and not at the seat."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pxed.mac import Mac
from tests.netns.test_manage import M1, M2, Room, room

__all__ = ["room"]

pytestmark = pytest.mark.netns

PI = Mac("dc:a6:32:00:00:01")
SERVES_PIS = '[class.x86]\nimage = "lab"\n[class.rpi]\nimage = "pi"\n'
LIVE = "a live system: it has no installer"


def add(state: Path, name: str, class_name: str, version: str = "1", **more: object) -> None:
    """An image of which no byte matters."""
    directory = state / "images" / name / version
    directory.mkdir(parents=True)
    devices = {"boot": "boot.img", "root": "root.img"}
    if class_name == "rpi":
        (directory / "firmware").mkdir()
        devices["tfm"] = "tfm.img"  # which makes no difference to a Pi
        more["tree"] = "firmware"
    for file in devices.values():
        (directory / file).write_bytes(bytes(8192))
    said = {"name": name, "version": version, "class": class_name, "devices": devices, **more}
    (directory / "manifest.json").write_text(json.dumps(said))


@pytest.fixture
def pis(room: Room) -> Room:
    add(room.state, "pi", "rpi")
    room.start(SERVES_PIS)
    return room


def test_a_pi_that_was_never_heard_is_known_by_its_address(pis: Room) -> None:
    said = pis.pxed("client", "boot", str(PI), "provision", "--once", status=2)
    assert f"{PI}: image pi@1 cannot be installed: Raspberry Pis are diskless only" in said
    assert "Imager" in said
    assert pis.control.get("/v1/clients") == []


def test_a_pi_among_others_refuses_the_order_for_all(pis: Room) -> None:
    said = pis.pxed("client", "boot", str(M1), str(PI), "provision", status=2)
    assert str(PI) in said
    assert pis.control.get("/v1/clients") == []
    pis.pxed("client", "boot", str(M1), "provision")
    assert pis.client(M1)["order"] == "provision"


def test_a_pi_may_boot_its_own_card(pis: Room) -> None:
    pis.pxed("client", "boot", str(PI), "local")
    assert pis.client(PI)["order"] == "local"


@pytest.mark.parametrize("text", ['mode = "provision"\n', "[class.rpi.provision]\nwipe = true\n"])
def test_the_class_of_pis_has_no_installation(room: Room, text: str) -> None:
    add(room.state, "pi", "rpi")
    room.write(f"{SERVES_PIS}{text}")
    argv = [sys.executable, "-m", "pxed", "config", "check", "-c", str(room.config)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[class.rpi]" in done.stderr
    assert "Raspberry Pis are diskless only" in done.stderr


def test_a_pis_image_goes_on_no_stick(room: Room, tmp_path: Path) -> None:
    add(room.state, "pi", "rpi")
    said = room.pxed("image", "stick", "pi", str(tmp_path / "stick"), status=2)
    assert "Raspberry Pis are diskless only" in said
    assert not (tmp_path / "stick").exists()
    assert "no: Raspberry Pis" in room.pxed("image", "show", "pi")


def test_an_image_of_one_machine_is_what_counts_for_it(room: Room) -> None:
    add(room.state, "live", "x86", diskless_only=LIVE)
    room.start(f'[class.x86]\nimage = "lab"\n[client."{M1}"]\nimage = "live"\n')
    said = room.pxed("client", "boot", str(M1), "provision", "--once", status=2)
    assert f"{M1}: image live@1 has no tfm device" in said
    assert LIVE in said
    room.pxed("client", "boot", str(M2), "provision", "--once")


def test_a_machine_of_its_own_image_can_be_provisioned_where_its_class_cannot(room: Room) -> None:
    add(room.state, "live", "x86", diskless_only=LIVE)
    room.start(f'[class.x86]\nimage = "live"\n[client."{M1}"]\nimage = "lab"\n')
    room.pxed("client", "boot", str(M1), "provision", "--once")
    assert room.boot(M1) == "aoe:e16.2"


def test_an_order_for_an_image_does_not_hide_what_would_be_installed(room: Room) -> None:
    add(room.state, "live", "x86", diskless_only=LIVE)
    room.start('[class.x86]\nimage = "lab"\n')
    room.pxed("client", "boot", str(M1), "image=live")
    room.boot(M1)
    # The order takes the place of that for an image, so the class's image is installed.
    room.pxed("client", "boot", str(M1), "provision", "--once")
    assert room.boot(M1) == "aoe:e16.2"
    assert room.client(M1)["image"] == "lab@1"


def test_a_class_cannot_provision_what_cannot_be_installed(room: Room) -> None:
    add(room.state, "live", "x86", diskless_only=LIVE)
    room.start('[class.x86]\nimage = "live"\n')
    room.write('[class.x86]\nimage = "live"\nmode = "provision"\n')
    said = room.pxed("config", "reload", status=2)
    assert "live@1 has no tfm device to provision from and cannot be installed" in said
    assert LIVE in said


def test_a_switch_to_what_cannot_be_installed_names_who_waits_for_it(room: Room) -> None:
    room.start('[class.x86]\nimage = "lab"\n')
    room.pxed("image", "use", "lab@1")
    add(room.state, "lab", "x86", "2", diskless_only=LIVE)
    room.pxed("client", "boot", str(M1), "provision", "--once")
    said = room.pxed("image", "use", "lab@2")
    assert f"{M1} will not be provisioned: image lab@2 has no tfm device" in said
    assert "will not" not in room.pxed("image", "use", "lab@1")
