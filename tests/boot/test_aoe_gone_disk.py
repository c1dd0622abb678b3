"""A disk that is pulled out under ``aoe-fast serve``: an error for its clients alone."""

from pathlib import Path

import pytest

from aoe_fast.initiator import AtaError, Initiator
from pxed.lab.lab import Lab
from tests.boot.test_aoe_guest_server import serve, unc
from tests.boot.test_aoe_linux import system
from tests.guest import System, start_guest

__all__ = ["system"]  # a fixture
pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(600)]

RAW, FILE, GOOD = 0, 1, 2


def test_a_disk_that_is_gone_is_an_error_for_its_clients_alone(
    system: System, tmp_path: Path
) -> None:
    """One that is exported as it is, and one with a file system that an exported file is on."""
    disks = [tmp_path / name for name in ("raw", "files")]
    for disk in disks:
        disk.write_bytes(bytes(64 << 20))
    with Lab() as lab:
        guest = start_guest(lab, system, *disks)
        guest.shell("mke2fs -q -t ext4 /dev/vdc; mount -t ext4 /dev/vdc /mnt")
        guest.shell("head -c 33554432 /dev/zero > /mnt/file; head -c 1048576 /dev/zero > /tmp/good")
        guest.shell("sync; echo 3 > /proc/sys/vm/drop_caches")
        serve(
            guest, "-i eth0", f"--export 16.{RAW}=/dev/vdb,rw", f"--export 16.{FILE}=/mnt/file,rw",
            f"--export 16.{GOOD}=/tmp/good,rw,writeback",
        )  # fmt: skip
        host = lab.add_host("initiator")
        with host.inside(), Initiator("eth0", retries=20) as initiator:
            for slot in (RAW, FILE, GOOD):
                initiator.write(16, slot, 0, b"1" * 4096)
            for name in ("vdb", "vdc"):
                guest.shell(f"echo 1 > $(readlink -f /sys/block/{name}/device/..)/remove")
            for slot in (RAW, FILE):
                with pytest.raises(AtaError) as caught:
                    initiator.read(16, slot, 40000, 8)
                assert unc(caught.value)
                with pytest.raises(AtaError) as caught:
                    initiator.write(16, slot, 8, b"2" * 4096)
                assert unc(caught.value)
            initiator.write(16, GOOD, 0, b"3" * 4096)
            assert initiator.read(16, GOOD, 0, 8) == b"3" * 4096
        guest.shell("kill %1; wait %1", check=False)
        assert "/dev/vdb: cannot be synced" in guest.shell("cat /tmp/said")
