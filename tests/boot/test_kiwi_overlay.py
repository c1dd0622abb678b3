"""kiwi's own initramfs for overlay roots: its seats write to their /config, without our code. Long.

What kiwi builds as type kis: kernel, initramfs and squashfs; the initramfs is made of kiwi's dracut
modules as Debian has them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.server import LabServer
from tests.boot.conftest import PROGRAMS
from tests.boot.debian import power_on, shut_down
from tests.boot.others import by_dracut, kernel, root_of, squash
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1200)]

PACKAGES = (
    "linux-image-cloud-amd64", "dracut-core", "dmsetup", "fdisk", "gdisk", "parted", "bc",
    "iputils-arping", "isc-dhcp-client", "procps", "cryptsetup-bin", "nbd-client",
)  # fmt: skip
MODULES = ("kiwi-dracut-overlay", "kiwi-dracut-lib", "dracut-network")
# As docs/operators.md has it, and without messages in the middle of what a shell says.
CMDLINE = (
    "root=overlay:aoe=e16.1 rd.root.overlay.write=/dev/etherd/e16.3 rd.driver.pre=aoe rd.neednet=1 "
    "ip=link6 aoe.aoe_deadsecs=0 console=tty0 console=ttyS0 quiet loglevel=3"
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires(*PROGRAMS, "mmdebstrap", "dpkg-deb")
    place = tmp_path_factory.mktemp("kiwi")
    root, made = root_of(place, "kiwi", PACKAGES, MODULES), place / "1"
    made.mkdir()
    kernel(root, made / "vmlinuz")
    by_dracut(root, made / "initrd", "kiwi-overlay")
    squash(root, made / "root.squashfs")
    said = {
        "name": "lab", "version": "1", "class": "x86",
        "devices": {"boot": "root.squashfs", "root": "root.squashfs"},
        "kernel": {"vmlinuz": "vmlinuz", "initrd": "initrd", "cmdline": CMDLINE},
    }  # fmt: skip
    (made / "manifest.json").write_text(json.dumps(said))
    return made


def test_what_a_seat_wrote_is_there_in_its_next_boot(image: Path) -> None:
    with Lab() as lab:
        state = lab.directory / "state"
        argv = [sys.executable, "-m", "pxed", "image", "add", str(image), "--state-dir", str(state)]
        subprocess.run(argv, check=True, capture_output=True)
        LabServer(lab, state, '[class.x86]\nboot = "kernel"\n').start()
        seat = lab.add_client(memory=1024)
        power_on(seat)
        assert "OverlayOS_rootfs / overlay" in seat.shell("cat /proc/mounts", 60)
        assert "mine" not in seat.shell("ls /root", 60)
        seat.shell("echo precious > /root/mine; useradd pupil", 60)
        shut_down(seat)
        # It lies in the file system that is this seat's alone.
        layer = state / f"config/midlayers/{seat.mac.replace(':', '')}.ext4"
        argv = ["debugfs", "-R", "cat /rw/root/mine", str(layer)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert said == "precious\n"
        power_on(seat)
        assert seat.shell("cat /root/mine", 60) == "precious\n"
        assert "pupil" in seat.shell("getent passwd pupil", 60)
        shut_down(seat)
