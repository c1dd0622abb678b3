"""Linux's own initiator through restarts of the server and a cable that comes and goes.

A machine with aoe.ko runs ``fio --verify`` on our export all the time, and beside it a program that
reads and times every read. No request may fail, no block may differ, and I/O must go on by itself.
"""

import re
import signal
import statistics
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

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(3600)]

RESTARTS, FLAPS = 20, 100
RESUMES = 30.0  # seconds: much less than the driver waits until it gives a device up

_PULSE = """
import mmap, os, random, time
fd = os.open("/dev/etherd/e7.0", os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
last = time.monotonic()
done = 0
while not os.path.exists("/run/enough"):
    os.preadv(fd, [page], random.randrange(12288, 16384) * 4096)
    now = time.monotonic()
    done += 1
    if now - last > 0.15:
        with open("/run/gaps", "a") as gaps:
            gaps.write(f"{now - last:.3f}\\n")
    last = now
with open("/run/gaps", "a") as gaps:
    gaps.write(f"done {done}\\n")
"""
_FIO = (
    "fio --name=v --filename=/dev/etherd/e7.0 --size=40M --rw=randwrite --bs=4k --direct=1"
    " --ioengine=psync --verify=crc32c --verify_fatal=1 --verify_backlog=32"
    " --time_based --runtime=20m --output=/run/fio >/dev/null 2>&1 &"
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    requires("qemu-system-x86_64", "mksquashfs", "fio")
    return build_system(tmp_path_factory.mktemp("system"), "fio")


class Server:
    """``aoe-fast serve`` in the lab: planned restarts."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.disk = lab.directory / "disk"
        with self.disk.open("wb") as file:
            file.truncate(64 << 20)
        self.start()

    def start(self) -> None:
        self.process: subprocess.Popen[bytes] = self._lab.server.popen(
            [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--spin-us", "0",
             "--control", str(self._lab.directory / "control"),
             "--export", f"7.0={self.disk},rw,durable"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert b"ready" in self.process.stdout.readline()

    def restart(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.start()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as room:
        yield room


def begin(lab: Lab, system: System, tmp_path: Path) -> Client:
    work = tmp_path / "work"
    work.write_bytes(_PULSE.encode().ljust(4096, b"\0"))
    guest = start_guest(lab, system, work)
    guest.shell("modprobe aoe && tr -d '\\0' < /dev/vdb > /run/pulse.py", 60)
    guest.shell("until [ -b /dev/etherd/e7.0 ]; do echo > /dev/etherd/discover; sleep 0.5; done")
    guest.shell("python3 /run/pulse.py & sleep 3", 60)
    guest.shell(_FIO)
    time.sleep(10)  # Linux's round trip average takes a thousand frames to settle
    return guest


def gaps(guest: Client) -> list[float]:
    """What reads took that took long, in seconds; forgotten afterwards."""
    said = guest.shell("cat /run/gaps 2>/dev/null; rm -f /run/gaps")
    return [float(each) for each in re.findall(r"^(\d+\.\d+)$", said, re.MULTILINE)]


def end(guest: Client) -> str:
    """Stop; what fio says. HostError if a program failed or the kernel saw an I/O error."""
    guest.shell("touch /run/enough; until grep -q done /run/gaps; do sleep 0.2; done", 120)
    guest.shell("kill -INT $(pidof fio); wait", 120)
    guest.shell("! dmesg | grep -iE 'i/o error|aoe.*(down|fail)'")
    return guest.shell("cat /run/fio")


def test_restarts_and_a_flapping_cable(lab: Lab, system: System, tmp_path: Path) -> None:
    server = Server(lab)
    guest = begin(lab, system, tmp_path)
    gaps(guest)
    planned = []
    for _ in range(RESTARTS):
        server.restart()
        time.sleep(2.5)
        planned.append(max(gaps(guest), default=0.0))
    for _ in range(FLAPS):
        guest.cable(False)
        time.sleep(0.2)
        guest.cable(True)
        time.sleep(0.6)
    time.sleep(5)
    flapped = gaps(guest)
    said = end(guest)
    flapped += gaps(guest)  # what lasted longer than that
    longest = max(flapped, default=0.0)
    print(f"{RESTARTS} restarts: median {statistics.median(planned):.2f} s, "
          f"longest {max(planned):.2f} s; {FLAPS} flaps: longest {longest:.2f} s")  # fmt: skip
    assert "err= 0" in said, said
    assert max(planned + flapped) < RESUMES
