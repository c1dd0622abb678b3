"""What can go wrong with the state of a running lab: clear words, and nothing lost."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aoe_fast.frames import AtaError
from aoe_fast.initiator import Initiator
from pxed.errors import HostError
from pxed.mac import Mac, mac_bytes
from tests.conftest import Cable, requires
from tests.netns.test_manage import M1, M2, Room, image, room

__all__ = ["room"]
pytestmark = pytest.mark.netns


def refuses(room: Room, status: int) -> str:
    """What a server says that does not start."""
    done = room.cable.srv.run(room.command(), check=False, timeout=100)
    assert done.returncode == status, done.stderr
    lines: list[str] = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@contextmanager
def mounted(cable: Cable, tmp_path: Path) -> Iterator[Room]:
    """A room below whose state directory something is mounted; neither is left."""
    made = None
    try:
        cable.cli.ip("addr add 10.77.0.2/24 dev eth0", "route add default dev eth0")
        made = Room(cable, tmp_path)
        yield made
    finally:
        if made is not None and made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        subprocess.run(["umount", "--lazy", str(tmp_path / "state")], check=True)


@pytest.fixture
def small(cable: Cable, tmp_path: Path) -> Iterator[Room]:
    """A room whose state directory is a disk of 16 MiB."""
    requires("mount", "mkfs.ext4")
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", str(state)], check=True)
    with mounted(cable, tmp_path) as made:
        yield made


def fill(directory: Path) -> Path:
    """Take every free byte below ``directory``."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for piece in (65536, 512):
            with contextlib.suppress(OSError):
                while file.write(b"x" * piece) == piece:
                    pass
    return path


def test_a_full_disk(small: Room) -> None:
    small.start()
    small.boot(M1)
    small.runs(M1)
    small.pxed("client", "name", str(M1), "seat-01")
    filler = fill(small.state)
    assert small.read(M1, 0)[:1] == b"1"
    assert len(small.read(M1, 3)) == 512
    small.discover(M2)
    failed = small.until(lambda: small.events("midlayer-failed"))
    assert "No space left" in failed[0]["why"]
    small.until(lambda: small.client(M2)["state"] == "failed")  # what comes now is another boot
    said = small.pxed("image", "add", str(image(small.state, "2", b"2")), status=1)
    assert "are free" in said or "No space left" in said

    def notes() -> None:
        for number in range(200):
            small.control.post("/v1/clients/note", {"select": [M1], "note": f"{number} " * 99})

    with pytest.raises(HostError, match="cannot write"):
        notes()
    assert small.client(M1)["name"] == "seat-01"
    filler.unlink()
    small.pxed("client", "note", "seat-01", "-m", "after")
    small.boot(M2)
    small.stop(signal.SIGKILL)
    small.start()
    assert small.client(M1)["note"] == "after"
    assert sorted(p.name for p in (small.state / "images/lab").iterdir() if p.is_dir()) == ["1"]


@pytest.fixture
def failing(cable: Cable, tmp_path: Path) -> Iterator[Room]:
    """A room whose state directory is a file system of its own, which can become read-only."""
    requires("mount", "mkfs.ext4", "e2fsck")
    state, disk = tmp_path / "state", tmp_path / "disk"
    state.mkdir()
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    mount(disk, state)
    with mounted(cable, tmp_path) as made:
        yield made


def mount(disk: Path, state: Path) -> None:
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(disk), str(state)], check=True)


def is_degraded(room: Room, mac: Mac) -> None:
    """It says so, and the server has the reason."""
    with room.initiator(mac) as initiator:
        for number, line in enumerate((b"degraded 1.0 no disk", b"running 2.0 lab@1")):
            initiator.write(16, 4, number, line.ljust(512, b"\0"))
    room.until(lambda: room.client(mac)["state"] == "running")
    assert room.client(mac)["degraded"]
    assert room.client(mac)["why"].startswith("changes will be lost: ")
    assert "Read-only file system" in room.client(mac)["why"]


def test_a_disk_that_takes_nothing_any_more(failing: Room) -> None:
    room = failing
    room.start()
    room.boot(M1)
    room.runs(M1)
    with room.initiator(M1) as initiator:
        initiator.write(16, 3, 8000, b"mine".ljust(512, b"\0"))
    assert room.control.get("/v1/status")["disk"] == ""
    subprocess.run(["sync", "--file-system", str(room.state)], check=True)
    # As ext4 does it by itself after an error.
    subprocess.run(["mount", "-o", "remount,abort", str(room.state)], check=True)
    room.until(lambda: "Read-only file system" in room.control.get("/v1/status")["disk"])
    room.until(lambda: any("nothing is kept" in e["text"] for e in room.events("alarm")))
    assert "check it (fsck)" in room.pxed("status")
    doctor = [sys.executable, "-m", "pxed", "doctor", "-c", str(room.config)]
    assert "BROKEN  disk:" in room.cable.srv.run(doctor, check=False, timeout=300).stdout

    # One that is known reads what it has, and one that is new has nothing. Both say so.
    room.boot(M1)
    with room.initiator(M1) as initiator:
        assert initiator.read(16, 3, 8000, 1)[:4] == b"mine"
        with pytest.raises(AtaError):
            initiator.write(16, 3, 8000, bytes(512))
    room.boot(M2)
    room.sees_no(M2, 3)
    for mac in (M1, M2):
        is_degraded(room, mac)

    room.stop()
    assert room.process is not None
    assert room.process.returncode == 0
    said = (room.state.parent / "log").read_text()
    assert "Traceback" not in said, said
    assert "check it (fsck)" in refuses(room, 1)

    # A copy: another program's mount namespace may have the first one mounted for a while.
    subprocess.run(["umount", "--lazy", str(room.state)], check=True)
    disk = room.state.parent / "mended"
    shutil.copyfile(room.state.parent / "disk", disk)
    assert subprocess.run(["e2fsck", "-fy", str(disk)], capture_output=True).returncode < 4
    mount(disk, room.state)
    (room.state / "control.sock").unlink()
    room.start()
    room.boot(M1)
    with room.initiator(M1) as initiator:
        assert initiator.read(16, 3, 8000, 1)[:4] == b"mine"
        initiator.write(16, 3, 8000, bytes(512))


def test_an_image_that_is_deleted_under_us(room: Room) -> None:
    room.start()
    room.boot(M1)
    room.runs(M1)
    shutil.rmtree(room.state / "images/lab")
    assert room.read(M1, 1)[:1] == b"1"
    assert "no image" in room.pxed("image", "list")
    room.boot(M2)  # what is open goes on being served
    assert room.read(M2, 0)[:1] == b"1"
    room.stop()
    assert "pxed image build" in refuses(room, 2)
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.start()
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"2"


def test_a_damaged_manifest_costs_one_image(room: Room) -> None:
    room.start()
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@1")
    manifest = room.state / "images/lab/2/manifest.json"
    os.chmod(manifest, 0o644)
    manifest.write_text('{"name": ')
    said = room.pxed("image", "list")
    assert f"damaged: {manifest}" in said
    assert "lab@1" in said
    assert "manifest" in room.pxed("image", "use", "lab@2", status=2)
    room.stop()
    room.start()
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"1"


def test_damaged_channels_stop_a_start_with_a_clear_word(room: Room) -> None:
    room.start()
    room.pxed("image", "use", "lab@1")
    room.stop()
    (room.state / "images/lab/channels.json").write_text("[")
    assert "channels.json" in refuses(room, 2)


def test_a_damaged_database_goes_back_to_its_copy(room: Room) -> None:
    room.start()
    room.pxed("client", "name", str(M1), "seat-01")
    copy = room.state / "pxed.db.copy"
    room.until(copy.exists)
    while b"seat-01" not in copy.read_bytes():  # it was made before the name was given
        room.stop()
        copy.unlink()
        room.start()
        room.until(copy.exists)
    room.stop()
    path = room.state / "pxed.db"
    path.write_bytes(b"rubbish" * 4096)
    said = refuses(room, 1)
    assert "move it away" in said
    assert str(room.state / "pxed.db.copy") in said
    assert path.read_bytes() == b"rubbish" * 4096
    path.rename(room.state / "pxed.db.damaged")
    path.with_name("pxed.db-wal").unlink(missing_ok=True)
    (room.state / "pxed.db.copy").rename(path)
    room.start()
    assert room.client(M1)["name"] == "seat-01"


def test_the_state_of_a_newer_pxed_is_not_touched(room: Room) -> None:
    room.start()
    room.pxed("client", "name", str(M1), "seat-01")
    room.stop()
    path = room.state / "pxed.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=999")
    db.close()
    before = path.read_bytes()
    assert "newer pxed" in refuses(room, 2)
    assert path.read_bytes() == before
    assert "newer pxed" in room.pxed("image", "remove", "lab@1", status=2)


def test_two_administrators_at_once(room: Room) -> None:
    room.start()
    source = image(room.state, "2", b"2")

    def add() -> "subprocess.Popen[str]":
        words = ["image", "add", str(source), "--state-dir", str(room.state)]
        command = [sys.executable, "-m", "pxed", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    both = [add(), add()]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert "is there already" in "".join(said)

    def switch(version: str) -> None:
        for _ in range(20):
            room.control.post("/v1/images/use", {"image": f"lab@{version}"})

    threads = [threading.Thread(target=switch, args=(version,)) for version in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = json.loads((room.state / "images/lab/channels.json").read_text())["stable"]
    assert room.control.get("/v1/status")["images"]["x86"] == f"lab@{points[-1]}"
    assert all(a != b for a, b in itertools.pairwise(points))


def test_a_channel_that_cannot_be_served_goes_back(room: Room) -> None:
    room.start()
    room.pxed("image", "use", "lab@1")
    room.pxed("image", "add", str(image(room.state, "2", b"2", tfm=False)))
    room.write('[class.x86]\nmode = "provision"\n')
    room.pxed("config", "reload")
    assert "tfm" in room.pxed("image", "use", "lab@2", status=2)
    assert json.loads((room.state / "images/lab/channels.json").read_text()) == {"stable": ["1"]}
    room.stop()
    room.start('[class.x86]\nmode = "provision"\n')


def test_a_second_image_is_added_with_a_word_on_what_seats_boot(room: Room) -> None:
    room.start()
    other = image(room.state, "2", b"2")
    said = room.pxed("image", "add", str(other), "--name", "other")
    assert "other@2 is added" in said
    assert 'set image = "NAME" under [class.x86]' in said
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"1"


def test_an_add_whose_caller_goes_away_leaves_nothing(room: Room) -> None:
    room.start()
    source = image(room.state, "2", b"2")
    os.truncate(source / "root.img", 1 << 40)  # nothing but a hole, and many minutes to read
    words = ["image", "add", str(source), "--state-dir", str(room.state)]
    process = subprocess.Popen([sys.executable, "-m", "pxed", *words])
    room.until(lambda: list((room.state / "images/lab").glob(".add-*")))
    process.kill()
    process.wait()
    room.until(lambda: not list((room.state / "images/lab").glob(".add-*")))
    assert [p.name for p in (room.state / "images/lab").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("order", "path"),
    [("diskless", "aoe:e16.0"), ("provision", "aoe:e16.2"), ("local", "local.ipxe"),
     ("image=lab@1", "aoe:e16.0")],
)  # fmt: skip
def test_each_order_is_for_one_boot(room: Room, order: str, path: str) -> None:
    room.start()
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@2")
    room.pxed("client", "name", str(M1), "seat-01")
    said = room.pxed("client", "boot", "seat-*", order, "--once")
    assert f"seat-01 boots {order} at its next boot" in said
    assert f"next:{order}" in room.pxed("client", "list")
    assert room.discover(M1) == path
    if order == "local":
        room.cable.cli.ip(f"link set eth0 address {M1}")
        room.cable.cli.run(["curl", "-s", "tftp://10.77.0.1/local.ipxe"], check=True)
        room.until(lambda: room.client(M1)["once"] == "")
    else:
        room.until(lambda: room.events("midlayer-ready"))
        version = b"1" if order == "image=lab@1" else b"2"
        assert room.read(M1, int(path[-1]))[:1] == version
        room.until(lambda: room.client(M1)["once"] == "")
    assert room.boot(M1) == "aoe:e16.0"
    assert room.read(M1, 0)[:1] == b"2"


def test_events_are_followed_as_json(room: Room) -> None:
    room.start()
    words = ["event", "--follow", "--json", "--state-dir", str(room.state)]
    follower = subprocess.Popen([sys.executable, "-m", "pxed", *words],
                                stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert follower.stdout is not None
        room.boot(M1)
        for line in follower.stdout:
            entry = json.loads(line)
            assert {"id", "time", "kind"} <= entry.keys()
            if entry["kind"] == "midlayer-ready":
                break
        for _ in range(6):  # Python may be on its way into a read, which sleeps through it
            follower.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.wait(10)
                break
        assert follower.poll() == 130
    finally:
        follower.kill()
        follower.wait()


def test_one_upper_for_each_version_of_an_image(room: Room) -> None:
    """The layer is the same disk for all versions; what a version wrote to it stays there."""
    room.start()
    room.boot(M1)
    with room.cable.cli.inside(), Initiator("eth0", source_mac=mac_bytes(M1)) as initiator:
        initiator.write(16, 3, 8000, b"of lab@1".ljust(512, b"\0"))
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@2")
    room.boot(M1)
    assert room.read(M1, 0)[:1] == b"2"
    assert room.read(M1, 3, 8000)[:8] == b"of lab@1"
    room.pxed("image", "rollback", "lab")
    room.boot(M1)
    assert room.read(M1, 3, 8000)[:8] == b"of lab@1"


def test_block_devices_are_served_where_they_are(room: Room, tmp_path: Path) -> None:
    requires("losetup", "mkfs.ext4")
    names = []
    try:
        for device in ("boot", "root"):
            disk = tmp_path / f"{device}.disk"
            disk.write_bytes((device[:1].encode() * 510 + b"\x55\xaa") * 4096)
            loop = ["losetup", "--find", "--show", str(disk)]
            done = subprocess.run(loop, check=True, capture_output=True, text=True)
            names.append(done.stdout.strip())
        room.start()
        words = ["--name", "lab", "--version", "2", "--boot", names[0], "--root", names[1]]
        room.pxed("image", "add", *words)
        assert names[1] in room.pxed("image", "show", "lab@2")
        room.pxed("image", "use", "lab@2")
        room.boot(M1)
        assert (room.read(M1, 0)[:1], room.read(M1, 1)[:1]) == (b"b", b"r")
        subprocess.run(["mkfs.ext4", "-q", "-F", names[1]], check=True)
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", names[1], str(tmp_path / "mnt")], check=True)
        try:
            said = room.pxed("image", "add", *words[:2], "--version", "3", *words[4:], status=2)
            assert "mounted read-write" in said
        finally:
            subprocess.run(["umount", str(tmp_path / "mnt")], check=True)
    finally:
        room.stop()
        for name in names:
            subprocess.run(["losetup", "--detach", name], check=True)
