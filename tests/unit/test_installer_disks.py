"""Which disks the installer takes: its own shell code under busybox, on a made-up /sys."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.initramfs import busybox

SCRIPT = Path(str(resources.files("pxed.client"))) / "installer/disks.sh"
PCI = "devices/pci0000:00/0000:00"
# Name, place below /sys, size in sectors, removable, read-only.
DISKS = {
    "sda": (f"{PCI}:02.0/ata1/host0/target0:0:0/0:0:0:0/block/sda", 2048000, 0, 0),
    "sdb": (f"{PCI}:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb", 8192000, 0, 0),
    "sdc": (f"{PCI}:14.0/usb1/1-4/1-4:1.0/host7/target7:0:0/7:0:0:0/block/sdc", 4096000, 1, 0),
    "nvme0n1": (f"{PCI}:1d.0/nvme/nvme0/nvme0n1", 4096000, 0, 0),
    "vdb": (f"{PCI}:05.0/virtio2/block/vdb", 4096000, 0, 1),
    "etherd!e16.1": ("devices/virtual/block/etherd!e16.1", 4096000, 0, 0),
    "sr0": (f"{PCI}:02.0/ata2/host1/target1:0:0/1:0:0:0/block/sr0", 4096000, 1, 0),
}


def ask(sys: Path, here: str, wanted: str) -> tuple[str, str, str]:
    """What it makes of a machine with the disks ``here``: all that count, the one, and why none."""
    (sys / "block").mkdir(parents=True)
    for name in here.split():
        place, size, removable, locked = DISKS[name]
        (sys / place).mkdir(parents=True)
        (sys / "block" / name).symlink_to(sys / place)
        for file, value in (("size", size), ("removable", removable), ("ro", locked)):
            (sys / place / file).write_text(f"{value}\n")
    script = sys.parent / "disks.sh"
    script.write_text(SCRIPT.read_text().replace("/sys/", f"{sys}/"))
    asked = f". {script}; own= because= disk_wanted={wanted}; disks; choose; "
    asked += 'echo "$disks/$chosen/$because"'
    done = subprocess.run(
        [str(busybox()), "sh", "-uc", asked], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    every, chosen, because = done.stdout.strip().split("/", 2)
    return every, chosen, because


@pytest.mark.parametrize(
    ("here", "wanted", "every", "chosen"),
    [
        ("sda", "only", "sda", "sda"),
        ("nvme0n1 etherd!e16.1 sr0", "only", "nvme0n1", "nvme0n1"),
        ("sda nvme0n1", "largest", "nvme0n1 sda", "nvme0n1"),
        # What somebody has left in a socket: no size and no order makes it the machine's own.
        ("sda sdb sdc", "only", "sda", "sda"),
        ("sda sdb", "largest", "sda", "sda"),
        ("sdb nvme0n1", "smallest", "nvme0n1", "nvme0n1"),
        ("sdb vdb", "sdb", "sdb", "sdb"),
        ("sda sdb", "sdb", "sda sdb", "sdb"),
    ],
)
def test_the_disk_that_is_meant(
    tmp_path: Path, here: str, wanted: str, every: str, chosen: str
) -> None:
    assert ask(tmp_path / "sys", here, wanted)[:2] == (every, chosen)


@pytest.mark.parametrize(
    ("here", "wanted", "because"),
    [
        ("etherd!e16.1 vdb sdc", "only", "no disk that this image has a driver for"),
        ("sda nvme0n1", "only", "it has 2 disks (nvme0n1 sda) and nobody said which one"),
        ("sda", "sdz", "it has no disk sdz, only sda"),
        ("sdb", "only", "only disks on USB are here (sdb), and none was called by its name"),
        ("sdb", "first", "only disks on USB are here (sdb), and none was called by its name"),
        ("sdb sdc", "sdc", "only disks on USB are here (sdb)"),
    ],
)
def test_none_is_meant(tmp_path: Path, here: str, wanted: str, because: str) -> None:
    every, chosen, said = ask(tmp_path / "sys", here, wanted)
    assert (chosen, because in said) == ("", True), (every, said)
