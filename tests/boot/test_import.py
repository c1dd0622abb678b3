"""An installed Debian, imported as a disk image and as a directory, and booted by seats. Long."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.lab.server import LabServer
from tests.boot.conftest import PROGRAMS
from tests.boot.debian import eventually, installed, power_on
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1200)]

PACKAGES = ("linux-image-cloud-amd64", "sudo", "ifupdown")  # fetched once a day
ROOT_ID, ESP_ID = "0b0b0b0b-0000-4000-8000-000000000000", "0b0b0b0b"
FSTAB = f"UUID={ROOT_ID} / ext4 errors=remount-ro 0 1\nUUID=0B0B-0B0B /boot/efi vfat umask=77 0 1\n"
ESP, ROOT = 2048, 34816  # first sectors of the partitions
SIZE = 900 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an installed machine; nothing in it knows of us."""
    requires(*PROGRAMS, "mmdebstrap", "mke2fs", "qemu-img")
    place = tmp_path_factory.mktemp("machine")
    root = installed(place, PACKAGES)
    files = {
        "etc/fstab": FSTAB, "etc/hostname": "golden\n", "etc/machine-id": "deadbeef" * 4 + "\n",
        "home/anna/mine": "from the image\n",
        "etc/network/interfaces": "auto lo\niface lo inet loopback\nauto ens3\n"
        "iface ens3 inet static\n address 10.77.0.1/24\n",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def qcow2(root: Path) -> Path:
    """The same as a machine's disk: GPT, an EFI partition, one ext4; compressed as qcow2."""
    raw, target = root.parent / "raw", root.parent / "golden.qcow2"
    with raw.open("wb") as out:
        out.truncate(SIZE)
    run = subprocess.run
    table = (
        f"label: gpt\nstart={ESP}, size={ROOT - ESP}, type=uefi\n"
        f"start={ROOT}, size={SIZE // 512 - ROOT - 2048}, type=linux\n"
    )
    run(["sfdisk", "-q", str(raw)], input=table, text=True, check=True)
    fat = [
        "mkfs.fat",
        "-F",
        "16",
        "-i",
        ESP_ID,
        "--offset",
        str(ESP),
        str(raw),
        str((ROOT - ESP) // 2),
    ]
    run(fat, check=True, capture_output=True)
    make = ["mke2fs", "-q", "-t", "ext4", "-U", ROOT_ID, "-d", str(root)]
    place = ["-E", f"offset={ROOT * 512}", str(raw), f"{SIZE // 1024 - ROOT // 2 - 1024}k"]
    run([*make, *place], check=True)
    run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(target)], check=True)
    raw.unlink()
    return target


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def serve(lab: Lab, source: Path, *words: str, more: str = "") -> LabServer:
    """A server whose only image is what ``source`` was imported as."""
    state = lab.directory / "state"
    argv = [sys.executable, "-m", "pxed", "image", "import", str(source), "--name", "lab",
            "--version", "1", "--state-dir", str(state), "--json", *words]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["channels"] == ["stable"]
    server = LabServer(lab, state, more)
    server.start()
    return server


def is_a_seat(server: LabServer, seat: Client) -> None:
    """What must be true of an imported system on a seat, however it came there."""

    def stages() -> list[Any]:
        return [step["stage"] for step in server.client(seat.mac)["timeline"]]

    assert eventually(lambda: "running" in stages(), 120), stages()
    assert seat.shell("cat /home/anna/mine") == "from the image\n"
    assert seat.shell("hostname") == "seat-52-54-00-00-00-01\n"
    assert "deadbeef" not in seat.shell("cat /etc/machine-id")
    assert "UUID" not in seat.shell("cat /etc/fstab")
    assert "10.77.0.1/24" not in seat.shell("ip -4 addr; cat /etc/network/interfaces")
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain", 60)
    # networkd has the card; it waits for ever for one that udev failed to rename.
    ask = "networkctl --no-pager --no-legend"
    assert eventually(lambda: "pending" not in seat.shell(ask, 60), 120), seat.shell(ask, 60)
    assert "upperdir=/config/layers/lab@1/upper" in seat.shell("cat /proc/mounts")
    assert "degraded" not in seat.shell("ls /run/pxed")


def test_a_qcow2_disk_boots_without_a_disk_and_keeps_what_was_written(
    lab: Lab, qcow2: Path
) -> None:
    server = serve(lab, qcow2)
    seat = lab.add_client(memory=1024)
    power_on(seat)
    is_a_seat(server, seat)
    seat.shell("echo precious > /home/anna/more")
    seat.send("systemctl poweroff\n")
    assert eventually(lambda: not seat.running, 120), seat.console()[-1000:]
    layer = lab.directory / "state/config/midlayers/525400000001.ext4"
    said = subprocess.run(["dumpe2fs", "-h", str(layer)], capture_output=True, text=True)
    assert "needs_recovery" not in said.stdout
    seat.power_off()
    power_on(seat)
    assert seat.shell("cat /home/anna/more") == "precious\n"
    is_a_seat(server, seat)


def test_a_directory_boots_on_uefi_with_the_kernel_by_http(lab: Lab, root: Path) -> None:
    more = '[class.x86]\nboot = "kernel"\n[http]\nport = 80\n'
    server = serve(lab, root, "--compression", "lz4", "--no-maintenance", more=more)
    seat = lab.add_client(firmware="uefi", memory=1024)
    power_on(seat)
    is_a_seat(server, seat)
    assert seat.shell("ls -A /boot /media") == "/boot:\n\n/media:\n"
