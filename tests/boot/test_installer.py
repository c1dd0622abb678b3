"""The installer, from a stick, without any server: what it writes, and what it leaves alone.

Real firmware starts the stick and then the disk; each is one boot of a few seconds.
"""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.client.minimal import build_minimal
from pxed.client.tfm import build_stick
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from tests.boot.conftest import PROGRAMS
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]

UNATTENDED = "unattended=yes\n"


def long(*values: str) -> Any:
    """One more case of the same, for those with time, and for CI."""
    return pytest.param(*values, marks=[pytest.mark.long, pytest.mark.ci])


Sticks = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def sticks(tmp_path_factory: pytest.TempPathFactory) -> Sticks:
    """A stick for a version with orders; images are made once."""
    requires(*PROGRAMS, "grub-mkimage", "sfdisk")
    directory = tmp_path_factory.mktemp("sticks")
    cmdline = {"1.2": "rdinit=/missing panic=1"}

    def stick(version: str, orders: str) -> Path:
        image = directory / version
        if not image.exists():
            build_minimal(
                image, name="lab", version=version, maintenance=True, released="2026-11-25",
                cmdline=cmdline.get(version, ""),
            )  # fmt: skip
        name = hashlib.sha256(orders.encode()).hexdigest()[:8]
        path = directory / f"{version}-{name}"
        if not path.exists():
            build_stick(image, path, f"pxed-orders 1\n{orders}".encode() if orders else b"")
        return path

    return stick


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    requires(*PROGRAMS)
    with Lab() as room:
        yield room


class Machine:
    """A PC with a disk, and at times a stick."""

    def __init__(self, lab: Lab, sticks: Sticks, disk: Path, size: int = 512 << 20) -> None:
        self.lab, self.sticks, self.disk = lab, sticks, disk
        self.model, self.faults = "virtio-blk-pci", ""
        self.sized(size)
        self.client: Client | None = None
        self.others: tuple[Path, ...] = ()

    def sized(self, size: int) -> None:
        """Make the disk, of so many bytes, unless it is there."""
        if not self.disk.exists():
            with self.disk.open("wb") as out:
                out.truncate(size)

    def on(self, stick: Path | None = None, firmware: Firmware = "bios", how: str = "") -> Client:
        """``how``: QEMU's options for the disks."""
        self.off()
        plain = "virtio-blk-pci"
        drives = [(str(stick), ",readonly=on", plain)] if stick else []
        drives += [(f"{self.faults}{self.disk}", how, self.model)]
        drives += [(str(path), how, plain) for path in self.others]
        extra: list[str] = []
        for number, (path, options, model) in enumerate(drives):
            extra += [
                "-drive", f"file={path},format=raw,if=none,id=disk{number}{options}",
                "-device", f"{model},drive=disk{number}"
                + (",bootindex=0" if number == 0 else ""),
            ]  # fmt: skip
        self.client = self.lab.add_client(firmware=firmware, extra=tuple(extra))
        self.client.power_on()
        return self.client

    def off(self) -> None:
        if self.client is not None:
            self.client.power_off()

    def start_installer(
        self, version: str, orders: str = UNATTENDED, *, slow: bool = False
    ) -> Client:
        """``slow``: a disk that takes 2 MB a second, so that there is a middle of a write."""
        how = ",throttling.bps-write=2097152" if slow else ""
        return self.on(self.sticks(version, orders), how=how)

    def result(self) -> str:
        """What the installer came to."""
        assert self.client is not None
        found = self.client.wait_for(
            r"pxed: [0-9.]+ ((?:installed|upgraded|kept|refused|failed) [^\r\n]*)", 200
        )
        return found[1]

    def run_installer(self, version: str, orders: str = UNATTENDED) -> str:
        self.start_installer(version, orders)
        said = self.result()
        self.off()
        return said

    def boot(self, firmware: Firmware = "bios") -> str:
        """Start from the disk to a shell; the image that runs."""
        client = self.on(firmware=firmware)
        found = client.wait_for(r"running (lab@\S+)\s", 200)
        client.wait_for(r"running [^\n]*\n(?s:.*)# ", 60)
        return found[1]

    def shell(self, command: str) -> str:
        assert self.client is not None
        return self.client.shell(command)

    def state(self, key: str) -> str:
        """What its disk's state says: ``slot``, the system that is good, or ``try``, the next."""
        with self.disk.open("rb") as source:
            for at in range(0, 256 << 20, 1 << 20):
                block = os.pread(source.fileno(), 512, at + 512)
                if block.startswith(b"# GRUB Environment Block\n"):
                    found = re.search(rf"\n{key}=([ab])\n".encode(), block)
                    return found[1].decode() if found else ""
        raise AssertionError("there is no state on the disk")

    def bytes(self) -> str:
        with self.disk.open("rb") as source:
            return hashlib.file_digest(source, "blake2b").hexdigest()


@pytest.fixture
def machine(lab: Lab, sticks: Sticks, tmp_path: Path) -> Iterator[Machine]:
    pc = Machine(lab, sticks, tmp_path / "disk")
    yield pc
    pc.off()
    pc.disk.unlink()  # pytest would keep it, and there are many


@pytest.fixture(scope="module")
def installed(
    lab: Lab, sticks: Sticks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A disk with 1.0, support until the end of 2026, that has run once and has settings."""
    pc = Machine(lab, sticks, tmp_path_factory.mktemp("installed") / "disk")
    said = pc.run_installer("1.0", UNATTENDED + "until=2026-12-31\n")
    assert said.startswith("installed lab@1.0 on vdb, after ")
    assert pc.boot() == "lab@1.0"
    pc.shell("echo mine > /etc/mine; mkdir -p /usr/local /usr/share; echo tool > /usr/local/tool")
    pc.shell("echo old > /usr/share/of-version; rm /etc/group; echo teacher:x:1001: > /etc/group")
    pc.shell("sync")
    pc.off()
    yield pc
    pc.off()


@pytest.fixture
def copy(installed: Machine, lab: Lab, sticks: Sticks, tmp_path: Path) -> Iterator[Machine]:
    """Another machine with the same disk."""
    installed.off()  # where the test before did not come to that
    disk = tmp_path / "disk"
    subprocess.run(["cp", "--sparse=always", str(installed.disk), str(disk)], check=True)
    pc = Machine(lab, sticks, disk)
    yield pc
    pc.off()
    disk.unlink()


def test_what_was_installed_starts_on_uefi_too(installed: Machine) -> None:
    assert installed.boot("uefi") == "lab@1.0"
    assert installed.shell("cat /etc/mine") == "mine\n"
    mounts = installed.shell("cat /proc/mounts")
    assert "upperdir=/config/layers/local/upper" in mounts
    assert "degraded" not in installed.shell("ls /run/pxed")
    installed.off()


@pytest.mark.long
@pytest.mark.ci
def test_a_stick_starts_on_uefi_too(machine: Machine, sticks: Sticks) -> None:
    machine.on(sticks("1.0", UNATTENDED), "uefi")
    assert machine.result().startswith("installed lab@1.0 on vdb")
    assert machine.boot("uefi") == "lab@1.0"


def test_an_upgrade_keeps_the_settings(copy: Machine) -> None:
    said = copy.run_installer("1.1")
    assert said.startswith("upgraded lab@1.0 to lab@1.1 on vdb, after ")
    assert copy.client is not None
    assert "vdb: reading it back 100 %" in copy.client.console()
    assert copy.boot() == "lab@1.1"
    assert copy.shell("cat /etc/mine /usr/local/tool /etc/pxed-image") == "mine\ntool\nlab@1.1\n"
    assert "of-version" not in copy.shell("ls /usr/share")
    # The image's own accounts are there beside the user's.
    assert copy.shell("cat /etc/group") == "teacher:x:1001:\nroot:x:0:\n"
    assert copy.boot() == "lab@1.1"  # it was good


def test_a_system_that_does_not_start_is_given_up(copy: Machine) -> None:
    assert copy.run_installer("1.2").startswith("upgraded lab@1.0 to lab@1.2")
    client = copy.on()
    client.wait_for(r"(?s)Kernel panic.*running lab@1\.0", 200)
    client.wait_for(r"running [^\n]*\n(?s:.*)# ", 60)
    assert copy.shell("cat /etc/mine /usr/share/of-version") == "mine\nold\n"


@pytest.mark.parametrize(
    ("version", "orders", "why"),
    [
        ("1.0", "", "it has 1.0 already"),
        long("0.9", "", "it has 1.0, which is not older than 0.9"),
        ("1.1", "until=2026-11-24\n", "1.1 was released 2026-11-25, and support ended 2026-11-24"),
        long(
            "1.1", "released=2027-01-01\n", "1.1 was released 2027-01-01, and support ended 2026-"
        ),
    ],
)
def test_a_disk_that_is_to_be_kept_is_not_touched(
    copy: Machine, version: str, orders: str, why: str
) -> None:
    before = copy.bytes()
    said = copy.run_installer(version, UNATTENDED + orders)
    assert said.startswith(f"kept vdb: {why}")
    assert "nothing was changed" in said
    assert copy.bytes() == before


def test_a_foreign_disk_is_not_touched_unless_that_is_wanted(machine: Machine) -> None:
    table = b"label: dos\nstart=2048, size=20480, type=7\nsize=20480, type=83\n"
    subprocess.run(["sfdisk", "-q", str(machine.disk)], input=table, check=True)
    before = machine.bytes()
    assert machine.run_installer("1.0").startswith(
        "refused vdb: it holds 2 partitions that pxed did not make; nothing was changed"
    )
    assert machine.bytes() == before
    said = machine.run_installer("1.0", UNATTENDED + "wipe=yes\n")
    assert said.startswith("installed lab@1.0 on vdb")


def test_a_file_system_without_a_table_is_foreign_and_a_person_can_say_so(
    machine: Machine,
) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", str(machine.disk)], check=True)
    client = machine.start_installer("1.0", "")
    client.wait_for("ALL OF IT WILL BE LOST if you type the disk's name, vdb", 200)
    client.send("vdb\n")
    assert machine.result().startswith("installed lab@1.0 on vdb")


@pytest.mark.long
@pytest.mark.ci
def test_nobody_at_the_console_means_no(machine: Machine) -> None:
    before = machine.bytes()
    client = machine.start_installer("1.0", "patience=2\n")
    client.wait_for(r"Install lab@1.0 on vdb \(512 MiB, the disk is empty\)\? yes or no", 200)
    assert machine.result().startswith("refused vdb: the disk is empty, and nobody said yes")
    assert machine.bytes() == before


@pytest.mark.long
@pytest.mark.ci
def test_several_disks_need_a_choice(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with other.open("wb") as out:
        out.truncate(64 << 20)
    machine.others = (other,)
    assert machine.run_installer("1.0").startswith(
        "refused none: it has 2 disks (vdb vdc) and nobody said which one; nothing was changed"
    )
    said = machine.run_installer("1.0", UNATTENDED + "disk=smallest\n")
    assert said.startswith("refused vdc: vdc has 64 MiB, and lab@1.0 needs ")
    assert machine.run_installer("1.0", UNATTENDED + "disk=vdb\n").startswith("installed lab@1.0")
    assert other.stat().st_blocks == 0


# Where the plug is pulled in an upgrade: what the console has said last.
CUTS = [
    "maintenance mode", "root lab@1.1", "disk vdb", "vdb: upgrade", "writing", "lab@1.1 100 %",
    "reading it back", "starts next", "upgraded",
]  # fmt: skip


@pytest.mark.parametrize("point", [p if p == "writing" else long(p) for p in CUTS])
def test_a_power_cut_in_an_upgrade_leaves_a_system_that_starts(copy: Machine, point: str) -> None:
    client = copy.start_installer("1.1", slow=point == "writing")
    client.wait_for(point.replace("writing", "reading it back"), 200)
    if point == "writing":
        # From here the other boot partition takes minutes.
        client.monitor("block_set_io_throttle", device="disk1", bps=0, bps_rd=0, bps_wr=1 << 16,
                       iops=0, iops_rd=0, iops_wr=0)  # fmt: skip
        time.sleep(3)
    copy.off()
    # A busy machine may have come further than to the point: what it has done counts, and it says
    # so after it has done it.
    switched = copy.state("try") == "b"
    assert switched or "starts next" not in client.console()
    assert switched or point not in ("starts next", "upgraded")
    assert copy.boot() == ("lab@1.1" if switched else "lab@1.0")
    assert copy.shell("cat /etc/mine") == "mine\n"
    copy.off()
    # And the upgrade can be had after all.
    assert copy.run_installer("1.1").split()[0] in ("upgraded", "kept")
    assert copy.boot() == "lab@1.1"


@pytest.mark.long
@pytest.mark.ci
def test_a_power_cut_in_the_first_start_leads_back_to_the_old_system(copy: Machine) -> None:
    copy.run_installer("1.1")
    client = copy.on()
    client.wait_for("kernel .* from vda, system b", 200)
    copy.off()
    # As above: what came as far as to run may have become the system that is good.
    good = copy.state("slot") == "b"
    assert not good or "running lab@1.1" in client.console()
    assert copy.state("try") == ""
    assert copy.boot() == ("lab@1.1" if good else "lab@1.0")
    assert copy.shell("cat /etc/mine") == "mine\n"
    assert ("of-version" in copy.shell("ls /usr/share")) is not good


@pytest.mark.long
@pytest.mark.ci
def test_an_installation_that_was_cut_off_is_begun_again(machine: Machine) -> None:
    client = machine.start_installer("1.0", slow=True)
    client.wait_for("100 %", 200)
    machine.off()
    # Half of its time was still to come; where nobody pulled the plug in that, it has ended.
    ended = machine.state("slot") == "a"
    client = machine.start_installer("1.0")
    client.wait_for(f"disk vdb: 512 MiB, {'ours' if ended else 'unfinished'}", 200)
    assert machine.result().startswith("kept vdb" if ended else "installed lab@1.0 on vdb")


@pytest.mark.long
def test_a_disk_that_is_too_small_by_a_sector_is_not_touched(machine: Machine) -> None:
    machine.disk.unlink()
    machine.sized(64 << 20)
    said = machine.run_installer("1.0")
    found = re.search(r"vdb has 64 MiB, and lab@1\.0 needs (\d+); nothing was changed", said)
    assert found is not None, said
    least = int(found[1]) << 20
    machine.disk.unlink()
    machine.sized(least - 512)
    before = machine.bytes()
    assert f"needs {found[1]}; nothing was changed" in machine.run_installer("1.0")
    assert machine.bytes() == before
    machine.disk.unlink()
    machine.sized(least)  # what it says is enough
    assert machine.run_installer("1.0").startswith("installed lab@1.0 on vdb")
    assert machine.boot() == "lab@1.0"


@pytest.mark.long
@pytest.mark.ci
def test_an_nvme_disk_is_installed_started_and_upgraded(machine: Machine) -> None:
    machine.model = "nvme,serial=pxed"
    assert machine.run_installer("1.0").startswith("installed lab@1.0 on nvme0n1, after ")
    assert machine.boot("uefi") == "lab@1.0"
    machine.shell("echo mine > /etc/mine; sync")
    machine.off()
    assert machine.run_installer("1.1").startswith("upgraded lab@1.0 to lab@1.1 on nvme0n1")
    assert machine.boot("bios") == "lab@1.1"
    assert machine.shell("cat /etc/mine") == "mine\n"


def failing(place: Path, disk: Path, part: int, errno: int = 5) -> str:
    """QEMU's prefix for a disk that refuses each write to the middle of this partition."""
    argv = ["sfdisk", "--json", str(disk)]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    where = json.loads(said)["partitiontable"]["partitions"][part - 1]
    rules = place / f"faults{part}"
    rules.write_text(
        f'[inject-error]\nevent = "none"\niotype = "write"\nerrno = "{errno}"\n'
        f'sector = "{where["start"] + MIDDLE}"\nimmediately = "off"\n'
    )
    return f"blkdebug:{rules}:"


MIDDLE = 2048
BOOT_B, ROOT_B = 6, 7


@pytest.mark.parametrize("part", [pytest.param(ROOT_B, marks=pytest.mark.ci), BOOT_B])
@pytest.mark.long
def test_a_disk_that_fails_in_an_upgrade_says_so_and_starts_what_it_had(
    copy: Machine, part: int, tmp_path: Path
) -> None:
    copy.faults = failing(tmp_path, copy.disk, part)
    installer = copy.start_installer("1.1")
    said = copy.result()
    assert re.match(r"failed cannot write to vdb.*: Input/output error$", said), said
    # A stick that nobody takes out does not begin again.
    installer.wait_for("it stays so until it is restarted", 60)
    copy.faults = ""
    assert copy.boot() == "lab@1.0"
    assert copy.shell("cat /etc/mine") == "mine\n"
    copy.off()
    assert copy.run_installer("1.1").startswith("upgraded lab@1.0 to lab@1.1")


@pytest.mark.long
@pytest.mark.ci
def test_a_disk_that_cannot_be_read_is_not_taken_for_an_empty_one(
    machine: Machine, tmp_path: Path
) -> None:
    rules = tmp_path / "faults"
    rules.write_text('[inject-error]\nevent = "none"\niotype = "read"\nerrno = "5"\nsector = "1"\n')
    before = machine.bytes()
    machine.faults = f"blkdebug:{rules}:"
    assert machine.run_installer("1.0").startswith(
        "refused vdb: it holds what cannot be read: the disk may be failing; nothing was changed"
    )
    assert machine.bytes() == before


@pytest.mark.long
def test_a_disk_whose_table_was_wiped_is_installed_anew(copy: Machine) -> None:
    """At the same places: what is left of the settings there is nobody's any more."""
    subprocess.run(["wipefs", "--all", "--force", "--quiet", str(copy.disk)], check=True)
    assert copy.run_installer("1.0").startswith("refused vdb: it holds data, or a partition table")
    said = copy.run_installer("1.0", UNATTENDED + "wipe=yes\n")
    assert said.startswith("installed lab@1.0 on vdb"), said
    assert copy.boot() == "lab@1.0"
    assert "mine" not in copy.shell("ls /etc").split()
