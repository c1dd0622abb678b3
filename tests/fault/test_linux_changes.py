"""Linux's own initiator, busy on a durable and a writeback export, while all else changes.

Exports come and go beside them, the server is restarted and killed, frames become longer and
shorter. No request may fail and no block differ; the file system is clean for another kernel, too.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.conftest import requires
from tests.guest import System, build_system, start_guest

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1800)]

ROUNDS = 6
AOE_FAST = [sys.executable, "-m", "aoe_fast.cli"]
_FILES = """
n=0
while [ ! -e /run/enough ]; do
    n=$((n + 1)); d=/mnt/d$((n % 8)); rm -rf $d; mkdir $d
    for f in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        head -c $((f * 937)) /dev/urandom > $d/$f || echo FAILED >> /run/wrong
    done
    head -c 600000 /dev/urandom > $d/large
    (cd $d && md5sum * > ../sums$((n % 8))); sync
    echo 3 > /proc/sys/vm/drop_caches
    (cd $d && md5sum -c -s ../sums$((n % 8))) || echo DIFFERS >> /run/wrong
    echo $n > /run/rounds
done
touch /run/over
"""
_FIO = (
    "fio --name=v --filename=/dev/etherd/e7.1 --size=24M --rw=randwrite --bsrange=512-64k"
    " --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1"
    " --verify_backlog=64 --time_based --runtime=60m --output=/run/fio > /dev/null 2>&1 &"
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    requires("qemu-system-x86_64", "mksquashfs", "fio", "mke2fs", "e2fsck")
    return build_system(tmp_path_factory.mktemp("system"), "fio")


class Server:
    """``aoe-fast serve`` in the lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        for name, size in (("durable", 64 << 20), ("writeback", 24 << 20), ("more", 1 << 20)):
            (lab.directory / name).write_bytes(bytes(size))
        self.start()

    def start(self) -> None:
        folder = self._lab.directory
        self.process: subprocess.Popen[bytes] = self._lab.server.popen(
            [*AOE_FAST, "serve", "-i", "eth0", "--spin-us", "0", "--control", str(folder / "ctl"),
             "--export", f"7.0={folder}/durable,rw",
             "--export", f"7.1={folder}/writeback,rw,writeback"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert b"ready" in self.process.stdout.readline()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        assert self.process.wait(60) == (0 if number == signal.SIGTERM else -number)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def change(self, *words: str) -> None:
        folder = self._lab.directory
        subprocess.run(
            [*AOE_FAST, "export", words[0], "--control", str(folder / "ctl"), *words[1:]],
            check=True, capture_output=True, cwd=folder,
        )  # fmt: skip


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(mtu=9000) as room:
        yield room


def begin(lab: Lab, system: System, tmp_path: Path) -> Client:
    work = tmp_path / "work"
    work.write_bytes(_FILES.encode().ljust(4096, b"\0"))
    guest = start_guest(lab, system, work)
    guest.shell("ip link set eth0 mtu 9000; tr -d '\\0' < /dev/vdb > /run/files; modprobe aoe")
    for disk in ("e7.0", "e7.1"):
        guest.shell(f"until [ -b /dev/etherd/{disk} ]; do aoe-discover; sleep .5; done")
    guest.shell("mke2fs -q -F -t ext4 /dev/etherd/e7.0 && mount -t ext4 /dev/etherd/e7.0 /mnt", 200)
    guest.shell("touch /run/wrong; sh /run/files > /dev/null 2>&1 &")
    guest.shell(_FIO)
    one_more_round(guest)
    return guest


def one_more_round(guest: Client) -> None:
    """Wait until files were written and compared that nothing had been written of before."""
    count = "$(cat /run/rounds 2>/dev/null || echo 0)"
    guest.shell(f"n={count}; until [ {count} -ge $((n + 2)) ]; do sleep .2; done", 400)


def lengths(lab: Lab, guest: Client, mtu: int) -> None:
    """Frames of another length, first where the longer ones come from."""
    if mtu < 9000:
        guest.shell(f"ip link set eth0 mtu {mtu}; aoe-discover; sleep 1")
    lab.server.ip(f"link set eth0 mtu {mtu}")
    if mtu == 9000:
        guest.shell(f"ip link set eth0 mtu {mtu}; sleep 1; aoe-discover")


def test_nothing_fails_and_nothing_differs(lab: Lab, system: System, tmp_path: Path) -> None:
    server = Server(lab)
    guest = begin(lab, system, tmp_path)
    print(guest.shell("uname -r").strip())
    for number in range(ROUNDS):
        for slot in range(2, 12):
            server.change("add", f"7.{slot}={lab.directory}/more")
        for slot in range(2, 12):
            server.change("remove", f"7.{slot}")
        server.end(signal.SIGKILL if number % 2 else signal.SIGTERM)
        time.sleep(0.5)
        server.start()
        one_more_round(guest)
        lengths(lab, guest, 9000 if number % 2 else 1500)
        one_more_round(guest)
    guest.shell("touch /run/enough; until [ -e /run/over ]; do sleep .2; done", 400)
    guest.shell("kill -INT $(pidof fio); while pidof fio; do sleep .2; done", 200)
    said = guest.shell("cat /run/fio")
    assert "err= 0" in said, said
    assert guest.shell("cat /run/wrong") == ""
    guest.shell("umount /mnt", 200)
    guest.shell("! dmesg | grep -iE 'i/o error|aoe.*(down|fail)|ext4.*error'")
    print(re.findall(r"WRITE:.*", said), guest.shell("cat /run/rounds").strip(), "rounds of files")
    server.end()
    checked = subprocess.run(["e2fsck", "-fn", lab.directory / "durable"], capture_output=True)
    assert checked.returncode == 0, checked.stdout
