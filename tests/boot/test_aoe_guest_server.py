"""``aoe-fast serve`` in a guest: VLANs and disks that fail, which the host may not have."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast.initiator import AtaError, Initiator
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.test_aoe_linux import DISK, FOUND, Room, room, system
from tests.guest import System, start_guest

__all__ = ["room", "system"]  # fixtures
pytestmark = [pytest.mark.boot, pytest.mark.timeout(500)]

VLAN = "modprobe 8021q; ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 up"


def serve(guest: Client, *arguments: str) -> None:
    """``aoe-fast serve`` inside, until it is ready."""
    words = " ".join(arguments)
    guest.shell(f"python3 -m aoe_fast.cli serve --spin-us 0 {words} > /tmp/said 2>&1 &")
    guest.shell("until grep -q ready /tmp/said; do sleep .2; kill -0 $! || break; done", 150)
    assert "ready" in guest.shell("cat /tmp/said")


def test_a_vlan_is_served_and_followed(room: Room) -> None:
    """Tagged frames only reach the tagged interface, which may go and come back under load."""
    server = start_guest(room.lab, room.system)
    server.shell(VLAN)
    server.shell("head -c 8388608 /dev/urandom > /tmp/a")
    want = server.shell("md5sum < /tmp/a")
    serve(server, "-i eth0.5", "--export 16.0=/tmp/a")
    guest = room.boot()
    assert "(NA)" not in guest.shell("aoe-stat", check=False)
    assert guest.shell("aoeping -s 1 16 0 eth0 & sleep 1; kill $!", check=False).count("found") == 0
    guest.shell(VLAN)
    guest.shell(FOUND)
    assert re.search(r"e16\.0\s+0\.008GB\s+eth0\.5 8192\s+up", guest.shell("aoe-stat"))
    assert guest.shell(f"md5sum < {DISK}", 150) == want
    guest.shell("echo 1 > /proc/sys/vm/drop_caches")
    server.shell("ip link del eth0.5")
    guest.send(f"\x15md5sum < {DISK}; echo 'RE''AD'\n")
    time.sleep(1)
    server.shell(VLAN)
    guest.wait_for("READ", 150)
    assert guest.console().count(want.split()[0]) == 2
    assert "I/O error" not in guest.shell("dmesg")


DM = "dmsetup suspend d; echo '{table}' | dmsetup load d; dmsetup resume d"
GOOD, BAD = "0 32768 linear /dev/vdb 0", "0 32768 error"
NO_WRITES = "0 32768 flakey /dev/vdb 0 0 60 1 error_writes"


@pytest.fixture
def failing(system: System, tmp_path: Path) -> Iterator[tuple[Client, Initiator]]:
    """A guest that serves a disk whose table the test changes, and an initiator on its switch."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 << 20))
    with Lab() as lab:
        guest = start_guest(lab, system, disk)
        guest.shell(f"modprobe dm-flakey; echo '{GOOD}' | dmsetup create d; dmsetup mknodes")
        serve(guest, "-i eth0", "--export 16.0=/dev/mapper/d,rw")
        host = lab.add_host("initiator")
        with host.inside(), Initiator("eth0", retries=20) as initiator:
            yield guest, initiator


def unc(error: AtaError) -> bool:
    return (error.status, error.error) == (0x41, 0x40)


@pytest.mark.parametrize("table", [BAD, pytest.param(NO_WRITES, marks=pytest.mark.long)])
def test_a_sync_that_fails_is_said_to_each_write_that_waits(
    failing: tuple[Client, Initiator], table: str
) -> None:
    """pwrite puts the data into the page cache and succeeds: only fdatasync meets the disk."""
    guest, initiator = failing
    initiator.write(16, 0, 0, b"1" * 4096)
    guest.shell(DM.format(table=table))
    for lba in (0, 64):
        with pytest.raises(AtaError) as caught:
            initiator.write(16, 0, lba, b"2" * 1024)
        assert unc(caught.value), caught.value
    # The disk is well again: so are writes, and what is acknowledged now is there.
    guest.shell(DM.format(table=GOOD))
    initiator.write(16, 0, 0, b"3" * 4096)
    initiator.write(16, 0, 64, b"4" * 1024)
    # So many at once that two syncs run: the error was told to one descriptor, and by none again.
    initiator.write(16, 0, 1024, b"5" * (1 << 19))
    initiator.flush(16, 0)
    guest.shell("echo 3 > /proc/sys/vm/drop_caches")
    assert initiator.read(16, 0, 0, 8) == b"3" * 4096
    assert guest.shell("dd if=/dev/vdb bs=512 skip=64 count=1 2>/dev/null | head -c 4") == "4444"


def test_a_bad_sector_is_unc_for_its_readers_alone(failing: tuple[Client, Initiator]) -> None:
    guest, initiator = failing
    guest.shell(
        DM.format(table="0 1024 linear /dev/vdb 0\n1024 8 error\n1032 31736 linear /dev/vdb 1032")
    )
    guest.shell("echo 3 > /proc/sys/vm/drop_caches")
    with pytest.raises(AtaError) as caught:
        initiator.read(16, 0, 1024, 2)
    assert unc(caught.value)
    assert initiator.read(16, 0, 0, 8) == bytes(4096)
    assert initiator.read(16, 0, 4096, 8) == bytes(4096)
    with pytest.raises(AtaError) as caught:
        initiator.write(16, 0, 1025, b"x" * 512)
    assert unc(caught.value)
