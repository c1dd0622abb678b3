"""A golden disk, imported and installed on a seat's own disk, and upgraded there. Long."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.lab.server import LabServer
from tests.boot.debian import eventually, log_in, shut_down
from tests.boot.test_import import qcow2, root

__all__ = ["qcow2", "root"]

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1200)]

POLICY = "[class.x86.provision]\nunattended = true\n"


def do_import(state: Path, source: Path, version: str, *words: str) -> None:
    argv = [sys.executable, "-m", "pxed", "image", "import", str(source), "--name", "lab",
            "--version", version, "--state-dir", str(state), "--json", *words]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["diskless_only"] == ""


def provision(server: LabServer, seat: Client) -> str:
    """Order it, start, and wait for root's shell on what was installed; what the installer said."""
    body = {"select": [seat.mac], "order": "provision", "once": True}
    server.control.post("/v1/clients/boot", body)
    seat.power_on()
    seat.wait_for(r"(?s)restarting.*from vda, system [ab].*login: ", 500)
    log_in(seat)
    result: str = server.client(seat.mac)["result"]
    return result


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def server(lab: Lab, qcow2: Path) -> LabServer:
    state = lab.directory / "state"
    do_import(state, qcow2, "1")
    server = LabServer(lab, state, POLICY)
    server.start()
    return server


@pytest.fixture(scope="module")
def seat(lab: Lab, server: LabServer) -> Client:
    with (lab.directory / "disk").open("wb") as out:
        out.truncate(4 << 30)
    return lab.add_client(
        memory=1024,
        extra=(
            "-drive", f"file={lab.directory / 'disk'},format=raw,if=none,id=disk0",
            "-device", "virtio-blk-pci,drive=disk0,bootindex=2",
        ),
    )  # fmt: skip


def is_installed(seat: Client, image: str) -> None:
    """What must be true of every version of it."""
    assert seat.shell("cat /etc/hostname /etc/pxed-image", 60) == (
        f"seat-{seat.mac.replace(':', '-')}\n{image}\n"
    )
    mounts = seat.shell("cat /proc/mounts")
    assert "upperdir=/config/layers/local/upper" in mounts
    assert "etherd" not in mounts
    assert "degraded" not in seat.shell("ls /run/pxed")
    seat.shell("systemctl is-system-running --wait", 300, check=False)
    assert "0 loaded units listed" in seat.shell("systemctl --failed --no-pager --plain", 60)
    assert seat.shell("systemctl is-active pxed-good", 60) == "active\n"


def test_it_installs_itself_on_an_empty_disk(server: LabServer, seat: Client) -> None:
    assert provision(server, seat).startswith("installed lab@1 on vda, after ")
    is_installed(seat, "lab@1")
    assert seat.shell("cat /home/anna/mine") == "from the image\n"


def test_nothing_of_the_golden_machine_is_left(seat: Client) -> None:
    assert "deadbeef" not in seat.shell("cat /etc/machine-id")
    assert "UUID" not in seat.shell("cat /etc/fstab")
    assert "10.77.0.1/24" not in seat.shell("ip -4 addr; cat /etc/network/interfaces")
    # Nothing of its own asks for an address, so ours does.
    assert "90-pxed" in seat.shell("networkctl status ens3 --no-pager --lines=0", 60)


def test_its_next_version_upgrades_it(
    lab: Lab, server: LabServer, seat: Client, root: Path
) -> None:
    seat.shell("echo precious > /home/anna/more; echo mine > /etc/mine; echo x > /usr/bin/x")
    before = seat.shell("cat /etc/machine-id")
    shut_down(seat)
    (root / "home/anna/mine").write_text("from the next image\n")
    # Another format of the root, as it may come.
    do_import(lab.directory / "state", root, "2", "--compression", "lz4")
    server.control.post("/v1/images/use", {"image": "lab@2", "channel": "stable"})
    assert provision(server, seat).startswith("upgraded lab@1 to lab@2 on vda, after ")
    is_installed(seat, "lab@2")
    assert seat.shell("cat /home/anna/more /etc/mine") == "precious\nmine\n"
    assert seat.shell("cat /home/anna/mine") == "from the next image\n"
    assert seat.shell("cat /etc/machine-id") == before
    assert "No such file" in seat.shell("cat /usr/bin/x", check=False)
    shut_down(seat)
    assert eventually(lambda: server.client(seat.mac)["provisioned"] == "lab@2")
