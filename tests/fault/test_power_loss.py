"""Pull the plug of the server's disk at hundreds of moments, and look at what is left.

A server runs in a QEMU machine on a disk whose writes and flushes are logged. In the same machine
a raw initiator writes stamped sectors, and Linux's own aoe driver has an ext4 file system on the
second export, with files that are fsync'ed. The log is then replayed to a moment; what was written
after the last flush is there or not, as a seeded coin says. Everything acknowledged before must be
there, and both file systems, server's and client's, clean once their journals are replayed.

With writeback the promise is FLUSH's: all that was written before, through the mapping too.
"""

import os
import random
import re
import struct
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from tests.conftest import requires
from tests.fault.writelog import Disk, count, logged_disk
from tests.guest import System, build_system, start_guest

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(5000)]

ROUNDS = int(os.environ.get("PXED_POWER_ROUNDS", "120"))
CUTS = int(os.environ.get("PXED_POWER_CUTS", "500"))
DISK = 256 << 20
RAW_SECTORS = 8192
STAMP = struct.Struct("<8sQQ")

_PREPARE = (
    "mke2fs -q -F -t ext4 -b 4096 /dev/vdc && mkdir -p /state /client && mount /dev/vdc /state",
    "truncate -s 4M /state/raw.img && truncate -s 24M /state/layer.img",
    "mke2fs -q -F -t ext4 -b 4096 /state/layer.img && sync",
    "modprobe veth; ip link add va type veth peer name vb; ip link set va up; ip link set vb up",
    "SERVE='python3 -m aoe_fast.cli serve -i va --control /run/control --spin-us 0'",
    "$SERVE --export 7.0=/state/raw.img,rw,KIND --export 7.1=/state/layer.img,rw,KIND >/run/said &",
    "until [ -S /run/control ]; do sleep 0.2; done; sleep 1; modprobe aoe aoe_iflist=vb",
    "until [ -b /dev/etherd/e7.1 ]; do echo > /dev/etherd/discover; sleep 0.5; done",
    "mount -t ext4 /dev/etherd/e7.1 /client && tr -d '\\0' < /dev/vdb > /run/work.py",
)
# No sparse file: what has holes is not written through the mapping.
_PREPARE_FLUSHES = (
    "mke2fs -q -F -t ext4 -b 4096 /dev/vdc && mkdir -p /state && mount /dev/vdc /state",
    "dd if=/dev/zero of=/state/raw.img bs=4k count=1024 2>/dev/null && sync",
    "modprobe veth; ip link add va type veth peer name vb; ip link set va up; ip link set vb up",
    "tr -d '\\0' < /dev/vdb > /run/work.py",
    "SERVE='python3 /run/work.py serve -i va --control /run/control --spin-us 0'",
    "$SERVE --export 7.0=/state/raw.img,rw,writeback >/run/said 2>&1 &",
    "until [ -S /run/control ]; do sleep 0.2; done; sleep 1",
)
_FLUSHES = """
import random, struct, sys, threading, time
from aoe_fast import cli, mapped, service
from aoe_fast.initiator import Initiator

def watch(served, hot):
    while True:
        for held in list(served._held):
            if not held.export.closed and mapped.hot_chunks(held.export):
                hot.write("hot\\n")
                hot.flush()
                return
        time.sleep(0.001)

def tell(text):
    print("\\n@" + text, flush=True)
    assert sys.stdin.readline().strip() == "go"

if sys.argv[1:]:
    first, hot = service.Service.first, open("/run/hot", "w")
    def begin(served, specs):
        first(served, specs)
        threading.Thread(target=watch, args=(served, hot), daemon=True).start()
    service.Service.first = begin
    cli.main()
chance = random.Random(1)
stamp = struct.Struct("<8sQQ")
with Initiator("vb", timeout=5) as raw:
    tell("begin")
    for number in range(1, ROUNDS + 1):
        chunk = chance.randrange(64)
        for page in (*range(16), *range(16)):
            sector = chunk * 128 + page * 8
            raw.write(7, 0, sector, stamp.pack(b"stamped!", sector, number) * 21 + bytes(8))
        raw.flush(7, 0)
        tell(f"chunk {chunk} {number}")
tell("end")
"""
_WORK = """
import os, random, struct, sys
from aoe_fast.initiator import Initiator
chance = random.Random(1)
stamp = struct.Struct("<8sQQ")
def tell(text):
    print("\\n@" + text, flush=True)
    assert sys.stdin.readline().strip() == "go"
with Initiator("vb", timeout=5) as raw:
    tell("begin")
    for number in range(1, ROUNDS + 1):
        sector = chance.randrange(8192)
        raw.write(7, 0, sector, stamp.pack(b"stamped!", sector, number) * 21 + bytes(8))
        tell(f"raw {sector} {number}")
        name = f"/client/f{number % 40}"
        with open(name + ".new", "wb") as file:
            file.write(f"{number}\\n".encode() * chance.choice((1, 100, 5000)))
            file.flush()
            os.fsync(file.fileno())
        os.rename(name + ".new", name)
        folder = os.open("/client", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        tell(f"file {number % 40} {number}")
tell("end")
"""


@dataclass
class Run:
    """What was acknowledged, and where in the log the disk was then."""

    disk: Path
    log: Path
    begin: int = 0
    acknowledged: list[tuple[int, str, int, int]] = field(default_factory=list)


def record(
    lab: Lab,
    system: System,
    directory: Path,
    prepare: Sequence[str],
    script: str,
    after: str = "true",
) -> Run:
    """Run the machine to the end of its work, and of the command ``after``; it is off then."""
    run = Run(directory / "disk", directory / "log")
    for path, size in ((run.disk, DISK), (run.log, 0)):
        with path.open("wb") as file:
            file.truncate(size)
    work = directory / "work"
    work.write_bytes(script.replace("ROUNDS", str(ROUNDS)).encode().ljust(8192, b"\0"))
    machine = start_guest(lab, system, work, more=logged_disk(run.disk, run.log))
    for line in prepare:
        machine.shell(line, 120)
    machine.send("python3 /run/work.py\n")
    seen = 0
    end = time.monotonic() + 1800
    while True:
        words = re.findall(r"^@(\w+) ?(\d*) ?(\d*)\r?\n", machine.console(), re.MULTILINE)
        for kind, one, two in words[seen:]:
            position = count(run.log)
            if kind == "begin":
                run.begin = position
            elif kind == "chunk":
                run.acknowledged += [
                    (position, "raw", int(one) * 128 + page * 8, int(two)) for page in range(16)
                ]
            elif kind != "end":
                run.acknowledged.append((position, kind, int(one), int(two)))
            machine.send("go\n")
            if kind == "end":
                machine.shell(after, 120)
                machine.power_off()
                return run
        seen = len(words)
        assert machine.running, machine.console()[-2000:]
        assert time.monotonic() < end, machine.console()[-2000:]
        time.sleep(0.002)


def check(run: Run, cuts: list[tuple[int, int]], directory: Path) -> list[str]:
    """What is missing or broken after each cut (position in the log, seed), in words."""
    directory.mkdir()
    limit = max(cut for cut, _ in cuts)
    disk = Disk(directory / "disk", DISK, run.log, limit)
    image, layer, raw = (directory / name for name in ("image", "layer", "raw"))
    found = []
    for cut, seed in sorted(cuts):
        disk.advance(cut)
        disk.cut(image, random.Random(seed))
        found += [f"cut {cut}: {text}" for text in _losses(run, cut, image, layer, raw)]
    return found


def _losses(run: Run, cut: int, image: Path, layer: Path, raw: Path) -> list[str]:
    found = []
    done = [ack for ack in run.acknowledged if ack[0] <= cut]
    if not _clean(image):
        return ["the server's file system is damaged"]
    _debugfs(image, f"dump /raw.img {raw}", f"dump /layer.img {layer}")
    data = raw.read_bytes()
    newest = {one: two for _, kind, one, two in done if kind == "raw"}
    for sector, number in newest.items():
        have = STAMP.unpack_from(data.ljust(RAW_SECTORS * 512, b"\0"), sector * 512)
        # A later write that nobody has acknowledged yet may be there as well.
        if have[0] != b"stamped!" or have[1] != sector or have[2] < number:
            found.append(f"sector {sector}: write {number} is lost")
    if not any(kind == "file" for _, kind, *_ in run.acknowledged):
        return found
    if not _clean(layer):
        return [*found, "the client's file system is damaged"]
    files = {one: two for _, kind, one, two in done if kind == "file"}
    shown = _debugfs(layer, *(f"cat /f{one}" for one in files))
    for one, number in files.items():
        later = [two for _, kind, other, two in run.acknowledged
                 if kind == "file" and other == one and two >= number]  # fmt: skip
        if not any(f"{each}\n" in shown for each in later):
            found.append(f"file f{one}: write {number} is lost")
    return found


def _clean(image: Path) -> bool:
    """Replay the journal, as a mount would; then nothing may be wrong."""
    first = subprocess.run(["e2fsck", "-p", str(image)], capture_output=True, check=False)
    second = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False)
    return first.returncode in (0, 1) and second.returncode == 0


def _debugfs(image: Path, *commands: str) -> str:
    return subprocess.run(
        ["debugfs", "-f", "-", str(image)], input="\n".join(commands) + "\n",
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def positions(run: Run) -> list[tuple[int, int]]:
    """A cut at each acknowledgement, as far as they go, and others anywhere between."""
    chance = random.Random(7)
    last = run.acknowledged[-1][0]
    cuts = list(dict.fromkeys(position for position, *_ in run.acknowledged))[:CUTS]
    cuts += [chance.randrange(run.begin, last + 1) for _ in range(CUTS - len(cuts))]
    return [(cut, seed) for seed, cut in enumerate(cuts)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    requires("qemu-system-x86_64", "mksquashfs", "debugfs", "e2fsck")
    return build_system(tmp_path_factory.mktemp("system"))


def power_loss(
    system: System, tmp_path: Path, prepare: Sequence[str], *work: str
) -> tuple[Run, list[str]]:
    with Lab() as lab:
        run = record(lab, system, tmp_path, prepare, *work)
    cuts = positions(run)
    with ProcessPoolExecutor(2) as pool:
        halves = [pool.submit(check, run, cuts[half::2], tmp_path / f"half{half}")
                  for half in range(2)]  # fmt: skip
        return run, [text for half in halves for text in half.result()]


def _prepare(durability: str) -> list[str]:
    return [line.replace("KIND", durability) for line in _PREPARE]


def test_no_acknowledged_durable_write_is_lost(system: System, tmp_path: Path) -> None:
    run, losses = power_loss(system, tmp_path, _prepare("durable"), _WORK)
    assert len(run.acknowledged) == 2 * ROUNDS
    print(f"{CUTS} cuts in {run.acknowledged[-1][0] - run.begin} writes and flushes of the disk")
    assert losses == []


def test_writeback_loses_something(system: System, tmp_path: Path) -> None:
    """The same for acknowledgements from memory: without losses the test above proves nothing."""
    _run, losses = power_loss(system, tmp_path, _prepare("writeback"), _WORK)
    assert any("is lost" in text for text in losses)


def test_what_was_flushed_is_not_lost(system: System, tmp_path: Path) -> None:
    """Writeback and FLUSH; most writes go through the mapping, as half of a chunk's make it hot."""
    was_hot = "grep -q hot /run/hot"
    run, losses = power_loss(system, tmp_path, _PREPARE_FLUSHES, _FLUSHES, was_hot)
    assert len(run.acknowledged) == 16 * ROUNDS
    assert losses == []
