"""Linux's own AoE driver and aoetools, in a guest, against ``aoe-fast serve``."""

import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.lab.qemu import Client
from tests.aoe_frames import BROADCAST, config, frame
from tests.boot.debian import eventually
from tests.conftest import requires
from tests.guest import System, build_system, start_guest

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

DISK = "/dev/etherd/e16.0"
TOLD = "/sys/kernel/debug/aoe/e16.0"  # the driver makes it after the device, and then is done
FOUND = f"aoe-discover; until [ -b {DISK} ] && [ -e {TOLD} ]; do sleep .1; done"


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    requires("ip", "qemu-system-x86_64", "mksquashfs", "aoe-stat", "mke2fs", "depmod")
    return build_system(tmp_path_factory.mktemp("guest"))


class Room:
    """A switch, servers on it that run ``aoe-fast``, and guests."""

    def __init__(self, lab: Lab, system: System, folder: Path) -> None:
        self.lab, self.system, self.folder = lab, system, folder
        self.guest: Client

    def serve(
        self, *arguments: str, host: Namespace | None = None, name: str = "ctl"
    ) -> "subprocess.Popen[str]":
        """``aoe-fast serve`` until it is ready; the room's end kills it."""
        process = (host or self.lab.server).popen(
            [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--spin-us", "0",
             "--control", str(self.folder / name), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.readline():
            pytest.fail(f"serve did not start: {process.stderr.read()}")
        return process

    def ask(self, *words: str, name: str = "ctl") -> str:
        """What a command that talks to the running server prints."""
        return subprocess.run(
            [sys.executable, "-m", "aoe_fast.cli", *words, "--control", str(self.folder / name)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def stat(self, name: str = "ctl") -> Any:
        return json.loads(self.ask("stat", "--json", name=name))

    def image(self, name: str, size: int) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def boot(self, *, mtu: int = 9000) -> Client:
        """A guest with the aoe driver loaded, which has looked for its disks."""
        self.guest = start_guest(self.lab, self.system)
        self.guest.shell(f"ip link set eth0 mtu {mtu}")
        self.guest.shell("modprobe aoe; until [ -c /dev/etherd/discover ]; do sleep .1; done")
        return self.guest


@pytest.fixture
def room(system: System, tmp_path: Path) -> Iterator[Room]:
    with Lab(mtu=9000) as lab:
        yield Room(lab, system, tmp_path)


def driver(guest: Client) -> str:
    """What the driver tells of e16.0, for debugging its authors, and us."""
    return guest.shell(f"cat {TOLD}")


def paths(guest: Client) -> dict[str, tuple[int, int, int]]:
    """(in flight, window, bufcnt) for each target MAC of e16.0."""
    found = re.findall(r"([0-9a-f]{12}):(\d+):(\d+):(\d+)", driver(guest))
    return {mac: (int(out), int(window), int(most)) for mac, out, window, most in found}


@pytest.mark.parametrize(("mtu", "payload"), [(9000, 8192), (1500, 1024)])
def test_a_file_system_is_made_written_and_whole(room: Room, mtu: int, payload: int) -> None:
    disk = room.image("a.img", 32 << 20)
    room.serve("--export", f"16.0={disk},rw")
    guest = room.boot(mtu=mtu)
    guest.shell(FOUND)
    assert guest.shell("cat '/sys/block/etherd!e16.0/payload'").strip() == str(payload)
    guest.shell(f"mke2fs -q -F -t ext4 {DISK}", 90)
    guest.shell(f"mount -t ext4 {DISK} /mnt")
    wrote = guest.shell("head -c 9000000 /dev/urandom > /mnt/f; sync; md5sum < /mnt/f", 90)
    guest.shell("umount /mnt; echo 1 > /proc/sys/vm/drop_caches")
    guest.shell(f"mount -t ext4 -o ro {DISK} /mnt")
    assert guest.shell("md5sum < /mnt/f", 60) == wrote
    guest.shell(f"umount /mnt; e2fsck -fn {DISK}", 60)
    # What was acknowledged is in the image, for another kernel as well.
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    read = subprocess.run(["debugfs", "-R", "cat f", disk], check=True, capture_output=True).stdout
    assert len(read) == 9000000
    md5 = subprocess.run(["md5sum"], input=read, capture_output=True, check=True).stdout
    assert md5.decode() == wrote
    assert sum(worker["drops"] for worker in room.stat()["workers"]) == 0
    # A frame sent again would have closed the driver's window, which opens by one for each window
    # that comes back whole: it is open after a machine held us up, and never where frames are lost.
    assert eventually(lambda: its_window_is_open(guest)), driver(guest)


def its_window_is_open(guest: Client) -> bool:
    """Whether as many requests may be under way as the server takes; if not, it then reads more."""
    ((_, window, bufcnt),) = paths(guest).values()
    assert bufcnt == 64
    if window < bufcnt:
        guest.shell(f"echo 1 > /proc/sys/vm/drop_caches; cat {DISK} > /dev/null", 150)
    return window == bufcnt


def test_aoetools_in_the_guest(room: Room) -> None:
    disk = room.image("a.img", 8 << 20)
    room.serve("--export", f"16.0={disk},rw", "--wire-config")
    guest = room.boot()
    guest.shell("aoe-interfaces eth0; " + FOUND)
    assert re.search(r"e16\.0\s+0\.008GB\s+eth0 8192\s+up", guest.shell("aoe-stat"))
    assert "found e16.0" in guest.shell("aoeping -v 16 0 eth0").replace("\n", " ")
    assert "e16.0" in guest.shell("aoe-sancheck eth0", 60)
    # A larger disk at the same address: seen after aoe-revalidate.
    larger = room.image("b.img", 16 << 20)
    room.ask("export", "remove", "16.0")
    room.ask("export", "add", f"16.0={larger},rw")
    guest.shell("aoe-revalidate e16.0")
    guest.shell("until [ $(cat '/sys/block/etherd!e16.0/size') = 32768 ]; do sleep .1; done")
    # The driver does not let go of a device that it is still busy with, and says nothing.
    guest.shell("while aoe-stat | grep e16.0; do aoe-flush -a; sleep .1; done")
    guest.shell(FOUND)
    assert "up" in guest.shell("aoe-stat")


def test_a_device_node_of_aoe_mkshelf_and_aoe_flush(room: Room) -> None:
    """As on machines without udev: a node for each address, whose number the address decides."""
    disk = room.folder / "a.img"
    disk.write_bytes(bytes(range(256)) * 4096)
    room.serve("--export", f"16.0={disk}")
    guest = start_guest(room.lab, room.system)
    guest.shell("ip link set eth0 mtu 9000; modprobe aoe aoe_dyndevs=0")
    guest.shell("until [ -c /dev/etherd/discover ]; do sleep .1; done")
    guest.shell(f"mkdir /tmp/nodes; aoe-mkshelf /tmp/nodes 16; {FOUND}", 150)
    want = hashlib.md5(disk.read_bytes(), usedforsecurity=False).hexdigest()
    assert guest.shell("md5sum < /tmp/nodes/e16.0", 60).split()[0] == want
    # The driver does not let go of a device that it is still busy with, and says nothing.
    guest.shell("while aoe-stat | grep -q e16.0; do aoe-flush e16.0; sleep .1; done")
    assert "failed" in guest.shell("head -c 1 /tmp/nodes/e16.0 || echo failed")
    guest.shell(FOUND)
    assert guest.shell("md5sum < /tmp/nodes/e16.0", 60).split()[0] == want


LOAD = (
    "(i=0; until [ -e /tmp/stop ]; do i=$((i % 4 + 1)); head -c 3000000 /dev/urandom > /tmp/w;"
    f" dd if=/tmp/w of={DISK} bs=512k seek=$((i*6)) conv=fsync 2>/dev/null || echo FAILED;"
    f" dd if={DISK} iflag=direct bs=512k skip=$((i*6)) count=6 2>/dev/null"
    " | head -c 3000000 | cmp - /tmp/w || echo DIFFERS; echo >> /tmp/rounds; done;"
    " echo 'ALL DO''NE') &"
)
"""Writes and compares 3 MB again and again, until there is /tmp/stop."""


def one_more_round(guest: Client) -> None:
    """Wait for a round that begins and ends from now on."""
    count = "$(wc -l < /tmp/rounds)"
    guest.shell(f"n={count}; until [ {count} -ge $((n + 2)) ]; do sleep .1; done", 150)


@pytest.mark.parametrize(
    "how",
    [
        "server's link",
        "killed",
        pytest.param("guest's cable", marks=pytest.mark.long),
        pytest.param("stopped", marks=pytest.mark.long),
    ],
)
def test_io_outlives_an_outage(room: Room, how: str) -> None:
    disk = room.image("a.img", 32 << 20)
    server = room.serve("--export", f"16.0={disk},rw")
    guest = room.boot()
    guest.shell(FOUND)
    guest.shell("touch /tmp/rounds")
    guest.send(f"\x15{LOAD}\n")
    # It goes on and on. A fast server's answers are there before one could see that it asked.
    guest.shell("until [ -s /tmp/rounds ]; do sleep .1; done", 150)
    if how == "server's link":
        room.lab.server.ip("link set eth0 down")
        waits_for_an_answer(guest)
        room.lab.server.ip("link set eth0 up")
    elif how == "guest's cable":
        guest.cable(False)
        waits_for_an_answer(guest)
        guest.cable(True)
    else:
        server.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        server.wait(60)
        waits_for_an_answer(guest)
        room.serve("--export", f"16.0={disk},rw")
    one_more_round(guest)
    guest.shell("touch /tmp/stop")
    guest.wait_for("ALL DONE", 150)
    said = guest.console()
    assert "FAILED" not in said.replace("echo FAILED", "")
    assert "DIFFERS" not in said.replace("echo DIFFERS", "")
    assert "I/O error" not in guest.shell("dmesg")


def has_asked(guest: Client) -> bool:
    """Whether a request of the guest's is under way."""
    return any(out for out, _, _ in paths(guest).values())


def waits_for_an_answer(guest: Client) -> None:
    """Until a request of the guest's is on its way, which nobody answers, and for a while more."""
    assert eventually(lambda: has_asked(guest))
    time.sleep(1.5)


def test_two_servers_of_one_image_share_the_load(room: Room) -> None:
    """Linux takes them for two paths to one disk: right only because the images are the same."""
    data = bytes(range(256)) * 4096 * 8
    other = room.lab.add_host("second")
    for name in ("a.img", "b.img"):
        (room.folder / name).write_bytes(data)
    room.serve("--shared", "--export", f"16.0={room.folder}/a.img")
    room.serve("--shared", "--export", f"16.0={room.folder}/b.img", host=other, name="ctl2")
    guest = room.boot()
    guest.shell(FOUND)
    assert eventually(lambda: len(paths(guest)) == 2), driver(guest)
    (room.folder / "want").write_bytes(data)
    want = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout
    assert guest.shell(f"dd if={DISK} bs=1M 2>/dev/null | md5sum", 60) == want.decode()
    # Half and half, unless one of the two was held up: then as many as may be under way to it.
    assert eventually(
        lambda: min(room.stat(name)["exports"][0]["reads"] for name in ("ctl", "ctl2")) >= 32
    )
    # One of them goes: the other one takes over, and nothing fails.
    guest.shell("echo 1 > /proc/sys/vm/drop_caches")
    other.ip("link set eth0 down")
    assert guest.shell(f"dd if={DISK} bs=1M 2>/dev/null | md5sum", 120) == want.decode()
    assert "I/O error" not in guest.shell("dmesg")


def test_the_driver_follows_a_smaller_bufcnt(room: Room) -> None:
    """An unsolicited config reply, sent as the number of clients grows."""
    disk = room.image("a.img", 8 << 20)
    room.serve("--export", f"16.0={disk},rw", "--clients", "16")
    guest = room.boot()
    guest.shell(FOUND)
    ((_, _, before),) = paths(guest).values()
    assert before == 64
    crowd = room.lab.add_host("crowd")
    ask_as_many(crowd, 300)
    until = time.monotonic() + 60
    while (after := next(iter(paths(guest).values()))[2]) == before:
        assert time.monotonic() < until, driver(guest)
        time.sleep(0.2)
    assert after < before
    assert sum(w["announced"] for w in room.stat()["workers"]) > 0
    assert guest.shell(f"dd if={DISK} bs=64k count=16 2>/dev/null | md5sum").strip()


@pytest.mark.long
def test_a_black_hole_for_long_frames_is_said(room: Room) -> None:
    """A switch port that carries 1500 bytes between two ends that believe in 9000."""
    disk = room.image("a.img", 8 << 20)
    room.serve("--export", f"16.0={disk}")
    guest = room.boot()
    guest.shell(FOUND)  # a dd without its disk would end at once
    room.lab.switch.ip(f"link set {guest.tap} mtu 1500")
    guest.send(f"\x15dd if={DISK} of=/dev/null bs=64k count=4 skip=8 &\n")
    until = time.monotonic() + 150
    while not any(client["mtu_black_hole"] for client in room.stat()["clients"]):
        assert time.monotonic() < until, room.stat()["clients"]
        time.sleep(1)
    assert "long frames are lost" in room.ask("stat")


def ask_as_many(host: Namespace, many: int) -> None:
    """Config queries of ``many`` machines from one place."""
    with host.inside():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind(("eth0", 0))
    for number in range(many):
        mac = bytes.fromhex("0200000a") + number.to_bytes(2, "big")
        raw.send(frame(1, config(0), shelf=0xFFFF, slot=0xFF, src=mac, dst=BROADCAST))
    raw.close()
