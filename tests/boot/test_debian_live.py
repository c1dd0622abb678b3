"""A Debian seat at work while its server starts again, and while its image is switched. Long."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.conftest import Room
from tests.boot.debian import build, eventually, power_on, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.ci, pytest.mark.timeout(1200)]

# Copies a tree and compiles a program, each compared with what it must be, until told to stop.
# Each round drops what is in memory, so that all of it is read and written over the network again.
WORK = r"""cd /root
seq -f 'int f%.0f(int x) { return x * 3 + 1; }' 1 1500 > a.c
tcc -c -o good.o a.c
while [ ! -e /run/stop ]; do
    rm -rf copy b.o
    cp -a /usr/lib/systemd copy && sync || echo copy failed
    echo 3 > /proc/sys/vm/drop_caches
    diff -r /usr/lib/systemd copy || echo copy differs
    tcc -c -o b.o a.c && cmp good.o b.o || echo compiler failed
    echo round >> rounds
done
echo finished
"""


@pytest.fixture(scope="module")
def room(debian_image: Path) -> Iterator[Room]:
    with Lab() as lab:
        yield Room(lab, debian_image)


@pytest.fixture(scope="module")
def seat(room: Room) -> Client:
    client = room.lab.add_client(memory=1024)
    come_up(client)
    return client


def come_up(client: Client) -> None:
    """To its shell, and until nothing is started any more: a slow boot tells of that there."""
    power_on(client)
    client.shell("systemctl is-system-running --wait", 300, check=False)


def rounds(seat: Client) -> int:
    return int(seat.shell("cat /root/rounds 2>/dev/null | wc -l", 120))


def comes_to(seat: Client, wanted: int) -> bool:
    return eventually(lambda: rounds(seat) >= wanted, 400)


def test_work_goes_on_over_restarts_of_the_server(room: Room, seat: Client) -> None:
    for line in WORK.splitlines():
        quoted = line.replace("'", "'\\''")
        seat.shell(f"echo '{quoted}' >> /root/work", 120)
    seat.shell("(setsid sh /root/work > /root/said 2>&1 &)", 120)
    assert comes_to(seat, 1), seat.shell("cat /root/said", 120)
    for how, pause in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 8.0), (signal.SIGKILL, 0.0)):
        # More than the round that was going on: one that began and ended with the new server.
        wanted = rounds(seat) + 2
        room.server.stop(how)
        time.sleep(pause)
        room.server.start()
        assert comes_to(seat, wanted), how
    seat.shell("touch /run/stop", 120)
    assert eventually(lambda: "finished" in seat.shell("cat /root/said", 120), 300)
    assert seat.shell("cat /root/said", 120) == "finished\n"
    assert not re.search(r"I/O error|EXT4-fs error|SQUASHFS error", seat.shell("dmesg", 60))
    assert room.server.client(seat.mac)["state"] == "running"


def test_a_running_seat_keeps_its_image_until_it_boots_again(room: Room, seat: Client) -> None:
    build(room.state / "images/lab/2", "2")
    identity = seat.shell("cat /etc/machine-id /etc/hostname")
    # Of all that the root holds, in pieces that are read over the network.
    total = "echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/etherd/e16.1"
    before = seat.shell(total, 300)
    room.server.control.post("/v1/images/use", {"image": "lab@2", "channel": "stable"})
    assert seat.shell(total, 300) == before
    assert seat.shell("cat /etc/pxed-image") == "lab@1\n"
    assert room.server.client(seat.mac)["image"] == "lab@1"
    shut_down(seat)
    come_up(seat)
    assert seat.shell("cat /etc/pxed-image") == "lab@2\n"
    assert seat.shell(total, 300) != before
    assert seat.shell("cat /etc/machine-id /etc/hostname") == identity
    assert room.server.client(seat.mac)["image"] == "lab@2"
    room.server.control.post("/v1/images/use", {"image": "lab@1", "channel": "stable"})
    shut_down(seat)
    come_up(seat)
    assert seat.shell("cat /etc/pxed-image; wc -l < /root/a.c") == "lab@1\n1500\n"
    seat.power_off()
