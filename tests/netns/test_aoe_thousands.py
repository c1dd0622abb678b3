"""Thousands of exports in one process: served, changed under load, and the limits they meet."""

import json
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from tests.aoe_frames import READ, ata
from tests.aoe_peer import PATIENCE, Peer, eventually
from tests.conftest import Cable, requires
from tests.netns.test_aoe_cli_hot import AOE_FAST, Start, export, image, start

__all__ = ["start"]  # the fixture
pytestmark = pytest.mark.netns

MANY = 4096


def station(number: int) -> bytes:
    return b"\x02\x00\x00\x0f" + number.to_bytes(2, "big")


def content(number: int, sector: int) -> bytes:
    return struct.pack("<QQ", number, sector) * 32


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    """``MANY`` small images, each for one machine, all at 16.3; the file that lists them."""
    folder = tmp_path / "disks"
    folder.mkdir()
    lines = ["# the seats"]
    for number in range(MANY):
        path = folder / str(number)
        path.write_bytes(b"".join(content(number, sector) for sector in range(16)))
        lines.append(f"16.3={path},rw,mac={station(number).hex(':')}")
    listed = tmp_path / "exports"
    listed.write_text("\n".join(lines) + "\n")
    return listed


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def read(peer: Peer, number: int, sector: int) -> bytes:
    request = ata(READ, sector, 2, src=station(number), dst=b"\xff" * 6, tag=number)
    peer.mac = station(number)
    return peer.ask(request).data


class Reader(threading.Thread):
    """Reads one machine's disk, one request at a time, and compares every byte."""

    def __init__(self, cable: Cable, number: int) -> None:
        super().__init__()
        self.peer, self.number = Peer(cable, mac=station(number)), number
        self.reads, self.wrong = 0, ""
        self.stop = False

    def run(self) -> None:
        while not self.stop and not self.wrong:
            sector = self.reads % 15
            try:
                data = read(self.peer, self.number, sector)
            except AssertionError:
                self.wrong = f"no answer to read {self.reads}"
                return
            if data != content(self.number, sector) + content(self.number, sector + 1):
                self.wrong = f"read {self.reads} gave wrong data"
            self.reads += 1


def test_thousands_are_served_and_changed_under_load(
    start: Start, cable: Cable, tmp_path: Path, disks: Path
) -> None:
    server = start(cable.srv, "--exports", str(disks), "--clients", "1024")
    cable.cli.ip("link set eth0 promisc on")
    peer = Peer(cable)
    for number in (*range(0, MANY, 97), MANY - 1):
        assert read(peer, number, 3) == content(number, 3) + content(number, 4), number
    assert resident_kib(server.pid) < 300 << 10
    listed = json.loads(export(tmp_path, "list", "--json").stdout)
    assert len(listed) == MANY
    # Changes cost no frame: every read is sent once, and answered, and right.
    extra = tmp_path / "extra"
    extra.write_bytes(bytes(65536))
    reader = Reader(cable, 7)
    reader.start()
    try:
        for turn in range(3):
            assert export(tmp_path, "add", f"17.{turn}={extra}").returncode == 0
            assert export(tmp_path, "remove", f"17.{turn}").returncode == 0
            mac = station(100 + turn).hex(":")
            assert export(tmp_path, "remove", "16.3", "--mac", mac).returncode == 0
        assert eventually(lambda: reader.reads > 100 or reader.wrong)
    finally:
        reader.stop = True
        reader.join()
    assert reader.wrong == ""
    stat = subprocess.run(
        [*AOE_FAST, "stat", "--json", "--control", str(tmp_path / "ctl")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told = json.loads(stat.stdout)
    assert sum(worker["drops"] for worker in told["workers"]) == 0


def test_too_few_descriptors_are_said(cable: Cable, disks: Path) -> None:
    requires("prlimit")
    done = cable.srv.run(
        [
            "prlimit",
            "--nofile=400:400",
            "--",
            *AOE_FAST,
            "serve",
            "-i",
            "eth0",
            "--exports",
            str(disks),
        ],
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Too many open files" in done.stderr
    assert "raise the limit" in done.stderr


@pytest.mark.parametrize("most", [7, 9, 10, 12, 14])
def test_hardly_any_descriptors_are_said(cable: Cable, tmp_path: Path, most: int) -> None:
    """Too few for the images, for the pipe of its signals, for its rings, for its threads."""
    requires("prlimit")
    arguments = ["-i", "eth0", "--export", f"16.0={image(tmp_path / 'a')},rw"]
    limited = ["prlimit", f"--nofile={most}:{most}", "--", *AOE_FAST, "serve", *arguments]
    done = cable.srv.run(limited, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert "Too many open files" in done.stderr
    assert "raise the limit" in done.stderr


def test_a_low_soft_limit_is_no_limit(start: Start, cable: Cable, disks: Path) -> None:
    """What a login shell gives: 1024, of many more that are allowed."""
    requires("prlimit")
    arguments = ["serve", "-i", "eth0", "--control", "/nonexistent/x", "--exports", str(disks)]
    process = cable.srv.popen(
        ["prlimit", "--nofile=256:", "--", *AOE_FAST, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "--control" in process.stderr.read()  # all exports are open by then
    process.wait(PATIENCE)


def test_a_list_that_cannot_be_read(cable: Cable, tmp_path: Path) -> None:
    good = f"# ours\n16.0={image(tmp_path / 'a')}\n\n"
    for text, words in (
        (None, "No such file"),
        ("", "nothing to serve"),
        ("16.0\n", "list, line 1: '16.0'"),
        (f"{good}x.0=/b\n", "list, line 4: 'x.0=/b': 'x.0' is not SHELF.SLOT"),
        (f"{good}16.1=/b,offset=7x\n", "list, line 4: '16.1=/b,offset=7x': '7x' is not a size"),
        (f"{good}16.1={tmp_path}/none\n", "list, line 4: 16.1: "),
        (f"{good}{good}", "list, line 5: 16.0 twice for everybody"),
    ):
        path = tmp_path / "list"
        if text is not None:
            path.write_text(text)
        done = cable.srv.run(
            [*AOE_FAST, "serve", "-i", "eth0", "--exports", str(path)], check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
