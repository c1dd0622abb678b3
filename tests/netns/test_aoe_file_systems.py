"""``aoe-fast serve`` with its files on XFS and on Btrfs: holes, shared blocks, a full disk."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoe_fast.initiator import AtaError, Initiator
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns

MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
DISK = 320 << 20  # the least that mkfs.xfs makes
FILE = 1 << 30  # nearly all of it a hole
SECTORS = FILE // 512
ENOUGH = (64 << 20) // 512  # more than what FILL leaves
DURABLE, WRITEBACK, CUT = 0, 1, 2
HERE = Path(__file__).parents[2]
# Most of what is free: how much of that files can have, Btrfs does not know itself.
FILL = (
    "sync; n=$(($(stat -f -c '%a * %S' .) - 25000000));"
    " until fallocate -l $n filler 2> /dev/null; do n=$((n - 4000000)); done; sync"
)
Inside = Callable[[str], str]


@pytest.fixture(params=MAKE)
def server(request: pytest.FixtureRequest, cable: Cable, tmp_path: Path) -> Iterator[Inside]:
    """It serves three files; runs commands where they are, mounted for as long as it runs."""
    kind = request.param
    requires("mount", "nsenter", "unshare", MAKE[kind][0])
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has no {kind}")
    disk, place = tmp_path / "disk", tmp_path / "files"
    place.mkdir()
    with disk.open("wb") as made:
        made.truncate(DISK)
    subprocess.run([*MAKE[kind], str(disk)], check=True, capture_output=True)
    serve = (
        f"{sys.executable} -m aoe_fast.cli serve -i eth0 --control {tmp_path}/ctl"
        " --export 16.0=0,rw --export 16.1=1,rw,writeback --export 16.2=2"
    )
    script = (
        f"mount -o loop {disk} {place} && cd {place} && truncate -s {FILE} 0 1 2 && exec {serve}"
    )
    process = cable.srv.popen(
        ["unshare", "-m", "sh", "-c", script],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()

    def inside(command: str) -> str:
        return subprocess.run(
            ["nsenter", f"--target={process.pid}", "--mount", "sh", "-c", f"cd {place}; {command}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    try:
        yield inside
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def initiator(cable: Cable) -> Iterator[Initiator]:
    with cable.cli.inside(), Initiator("eth0", retries=20) as asks:
        yield asks


def refused(request: Callable[..., object], *arguments: object) -> bool:
    """Whether this request is a media error."""
    try:
        request(*arguments)
    except AtaError as error:
        said = error
    else:
        return False
    assert (said.status, said.error) == (0x41, 0x40), said
    return True


@pytest.mark.parametrize("slot", [DURABLE, WRITEBACK])
def test_a_full_disk_refuses_writes_and_gets_well(
    server: Inside, initiator: Initiator, slot: int
) -> None:
    data = os.urandom(1 << 19)
    initiator.write(16, slot, 0, b"B" * 65536)
    server(FILL)
    at = 4096
    while not refused(initiator.write, 16, slot, at, data):
        at += 1024
        assert at < ENOUGH, "a disk that is full has refused no write"
    assert at > 4096, "a disk that was not full yet has refused a write"
    # What is there stays, and what is full is an error for its writer alone.
    assert initiator.read(16, slot, 4096, 1024) == data
    assert initiator.read(16, slot, 0, 128) == b"B" * 65536
    assert refused(initiator.write, 16, slot, SECTORS - 2048, data)
    assert initiator.read(16, slot, SECTORS - 2048, 8) == bytes(4096)
    server(f"sync; truncate -s 2M {slot}; truncate -s {FILE} {slot}; sync")
    initiator.write(16, slot, SECTORS - 1024, data)
    assert initiator.read(16, slot, SECTORS - 1024, 1024) == data
    assert initiator.read(16, slot, 0, 128) == b"B" * 65536
    initiator.flush(16, slot)


def filled(data: bytes) -> str:
    """The letters that are in it."""
    return bytes(sorted(set(data))).decode("ascii", "backslashreplace")


@pytest.mark.parametrize("slot", [DURABLE, WRITEBACK])
def test_a_shared_block_is_copied_before_it_is_written(
    server: Inside, initiator: Initiator, slot: int
) -> None:
    assert initiator.read(16, slot, 1000, 16) == bytes(8192)  # a hole
    for fill in (b"A", b"B", b"C"):
        # Again and again: a writeback export goes over to writing into its mapping.
        for _ in range(4):
            initiator.write(16, slot, 0, fill * 65536)
        server(f"sync; cp --reflink=always {slot} copy-{fill.decode()}")
    initiator.write(16, slot, 0, b"D" * 65536)
    assert filled(initiator.read(16, slot, 0, 128)) == "D", "not what was written last"
    for name in ("A", "B", "C"):
        others = server(f"head -c 65536 copy-{name} | tr -d {name} | wc -c").strip()
        assert others == "0", f"{others} bytes of the copy that was made of {name} are other ones"


def test_a_file_that_is_cut_fails_its_reads_alone(server: Inside, initiator: Initiator) -> None:
    assert initiator.read(16, CUT, 8, 8) == bytes(4096)
    server(f"truncate -s 65536 {CUT}")
    assert initiator.read(16, CUT, 120, 8) == bytes(4096)
    assert refused(initiator.read, 16, CUT, 128, 8), "a read beyond the file's end"
    assert initiator.read(16, DURABLE, 128, 8) == bytes(4096)
