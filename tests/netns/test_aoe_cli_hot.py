"""``aoe-fast serve`` changed while it runs, its state file, and two servers on one segment."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from aoe_fast.initiator import ConfigCommand, Initiator, NoAnswer
from pxed.lab.netns import Namespace
from tests.aoe_frames import BROADCAST, frame, mask, reserve
from tests.aoe_peer import PATIENCE, Peer, eventually
from tests.conftest import Cable, requires
from tests.netns.site import vblade

pytestmark = pytest.mark.netns

AOE_FAST = [sys.executable, "-m", "aoe_fast.cli"]
# The same, which gives other servers on the wire more than 0.3 s to say that they are there:
# from the beginning, or for what is added later.
PATIENT = "from aoe_fast import cli, rivals; rivals.WAIT_S = 60; cli.main()"
PATIENT_LATER = """
from aoe_fast import cli, rivals, service
first = service.Service.first
def patient(self, specs):
    first(self, specs)
    rivals.WAIT_S = 60
service.Service.first = patient
cli.main()
"""
ONE = "52:54:00:00:bb:01"
Start = Callable[..., "subprocess.Popen[str]"]


def image(path: Path, size: int = 65536) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``aoe-fast serve`` in a namespace and waits for its ready line."""
    running: list[subprocess.Popen[str]] = []

    def begin(
        side: Namespace, *arguments: str, name: str = "ctl", program: Sequence[str] = AOE_FAST
    ) -> "subprocess.Popen[str]":
        control = str(tmp_path / name)
        process = side.popen(
            [*program, "serve", "-i", "eth0", "--control", control, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"serve did not start: {process.stderr.read()}")
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def export(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    verb, *rest = arguments
    return subprocess.run(
        [*AOE_FAST, "export", verb, "--control", str(tmp_path / "ctl"), *rest],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def refused(side: Namespace, *arguments: str) -> str:
    words = ["serve", "-i", "eth0", "--control", "/nonexistent/ctl", *arguments]
    done = side.run([sys.executable, "-c", PATIENT, *words], check=False, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def finds(initiator: Initiator, *slots: int) -> bool:
    """Whether it finds these, and at last only these."""
    return eventually(lambda: [device.slot for device in initiator.discover(wait=0.2)] == [*slots])


@contextlib.contextmanager
def unanswered(initiator: Initiator) -> Iterator[None]:
    """Around a request that nobody answers."""
    patience = initiator.timeout, initiator.retries
    initiator.timeout, initiator.retries = 0.1, 2
    with pytest.raises(NoAnswer):
        yield
    initiator.timeout, initiator.retries = patience


# Hot changes


def test_add_list_remove(start: Start, cable: Cable, tmp_path: Path) -> None:
    first, second = image(tmp_path / "a.img"), image(tmp_path / "b.img", 8192)
    start(cable.srv, "--export", f"16.0={first}")
    with cable.cli.inside(), Initiator("eth0") as initiator:
        added = export(tmp_path, "add", "16.1=b.img,rw")
        assert added.stdout == f"aoe-fast: added 16.1={second} (8.0 KiB, rw durable)\n"
        assert initiator.read(16, 1, 0, 16) == second.read_bytes()
        initiator.write(16, 1, 3, b"n" * 512)
        rows = json.loads(export(tmp_path, "list", "--json").stdout)
        assert [(row["address"], row["writable"]) for row in rows] == [
            ("16.0", False),
            ("16.1", True),
        ]
        assert len(export(tmp_path, "list").stdout.splitlines()) == 2
        assert export(tmp_path, "remove", "16.1").returncode == 0
        with unanswered(initiator):
            initiator.read(16, 1, 0, 1)
        assert initiator.read(16, 0, 0, 128) == first.read_bytes()
    assert second.read_bytes()[3 * 512 : 4 * 512] == b"n" * 512


def test_a_file_that_is_replaced_is_served_on_and_that_is_said(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    disk, gone = image(tmp_path / "disk.img"), image(tmp_path / "gone.img")
    before = disk.read_bytes()
    start(cable.srv, "--export", f"16.0={disk}", "--export", f"16.1={gone}")
    stat = [*AOE_FAST, "stat", "--control", str(tmp_path / "ctl")]
    said = subprocess.run(stat, capture_output=True, text=True, check=True).stdout
    assert "served on" not in said
    image(tmp_path / "new.img").rename(disk)
    gone.unlink()
    with cable.cli.inside(), Initiator("eth0") as initiator:
        assert initiator.read(16, 0, 0, 128) == before
        said = subprocess.run(stat, capture_output=True, text=True, check=True).stdout
        assert f"16.0: {disk} was replaced: what was there when it was opened is served on" in said
        assert f"16.1: {gone} was removed: " in said
        assert "file replaced: served as it was" in export(tmp_path, "list").stdout
        assert export(tmp_path, "remove", "16.0").returncode == 0
        assert export(tmp_path, "add", "16.0=disk.img").returncode == 0
        assert initiator.read(16, 0, 0, 128) == disk.read_bytes()
        rows = json.loads(export(tmp_path, "list", "--json").stdout)
        assert {row["address"]: row["file"] for row in rows} == {"16.0": "", "16.1": "removed"}


def test_a_private_export_comes_and_goes(start: Start, cable: Cable, tmp_path: Path) -> None:
    common, mine = image(tmp_path / "a.img"), image(tmp_path / "m.img", 4096)
    start(cable.srv, "--export", f"16.0={common}")
    raw = bytes.fromhex(ONE.replace(":", ""))
    with cable.cli.inside(), Initiator("eth0", source_mac=raw) as one:
        assert export(tmp_path, "add", f"16.3={mine},rw,mac={ONE}").returncode == 0
        assert finds(one, 0, 3)
        assert export(tmp_path, "remove", "16.3", "--mac", ONE).returncode == 0
        assert finds(one, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "16.0=a.img"], 1, "16.0 twice for everybody"),
        (["add", "16.1=missing"], 1, "no such file"),
        (["add", "16=a.img"], 2, "is not SHELF.SLOT"),
        (["remove", "16.7"], 1, "16.7 is not served"),
        (["remove", "16.0", "--mac", "x"], 2, "is not a MAC"),
        (["set", "16.0"], 2, "set what?"),
        (["set", "16.9", "--config", "x"], 1, "16.9 is not served"),
        (["set", "16.0", "--config", "x" * 1025], 1, "1024 at most"),
        (["set", "16.0", "--mask", "01:00:00:00:00:01"], 2, "group address"),
        (["frob"], 2, "frob"),
    ],
)
def test_a_wrong_change_changes_nothing(
    start: Start, cable: Cable, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')}")
    before = export(tmp_path, "list", "--json").stdout
    done = export(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert export(tmp_path, "list", "--json").stdout == before


def test_a_machine_that_is_named_twice_is_one(start: Start, cable: Cable, tmp_path: Path) -> None:
    start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')},rw")
    twice = f"{ONE},{ONE.upper()}"
    assert export(tmp_path, "set", "16.0", "--mask", twice, "--reserve", twice).returncode == 0
    (row,) = json.loads(export(tmp_path, "list", "--json").stdout)
    assert (row["mask"], row["reserved_by"]) == ([ONE], [ONE])


def test_the_administrator_overrides_what_clients_set(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    start(cable.srv, "--export", f"16.0={disk}", "--wire-config", "--wire-reserve")
    with cable.cli.inside(), Initiator("eth0") as initiator:
        initiator.config(16, 0, ConfigCommand.SET, b"mine")
        assert export(tmp_path, "set", "16.0", "--config", "ours").returncode == 0
        config = initiator.config(16, 0)
        assert config is not None
        assert config.string == b"ours"
        assert export(tmp_path, "set", "16.0", "--mask", ONE, "--reserve", ONE).returncode == 0
        with unanswered(initiator):
            initiator.read(16, 0, 0, 1)
        assert f"reserved by {ONE}" in export(tmp_path, "list").stdout
        assert export(tmp_path, "set", "16.0", "--mask", "", "--reserve", "").returncode == 0
        assert initiator.read(16, 0, 0, 1) == disk.read_bytes()[:512]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_state_survives_the_server(
    start: Start, cable: Cable, tmp_path: Path, end: signal.Signals
) -> None:
    arguments = ["--export", f"16.0={image(tmp_path / 'a.img')}", "--wire-config"]
    arguments += ["--state", str(tmp_path / "state")]
    process = start(cable.srv, *arguments)
    with cable.cli.inside(), Initiator("eth0") as initiator:
        initiator.config(16, 0, ConfigCommand.SET, b"seat 7")
        if end == signal.SIGKILL:
            # Within a second, and whole: the file is replaced.
            assert eventually((tmp_path / "state").exists)
        process.send_signal(end)
        process.wait(PATIENCE)
        start(cable.srv, *arguments)
        config = initiator.config(16, 0)
        assert config is not None
        assert config.string == b"seat 7"


def kept(state: Path) -> tuple[int, int]:
    """How many exports have a mask, and how many are reserved, in the file."""
    if not state.exists():
        return 0, 0
    entries = json.loads(state.read_text())["exports"].values()
    return sum(bool(e["allowed"]) for e in entries), sum(bool(e["holders"]) for e in entries)


def test_masks_and_reservations_survive_kill_9(start: Start, cable: Cable, tmp_path: Path) -> None:
    """What clients set over the wire, and what the administrator set against it."""
    arguments = ["--state", str(tmp_path / "state"), "--wire-reserve"]
    for slot in range(3):
        arguments += ["--export", f"16.{slot}={image(tmp_path / str(slot))}"]
    server = start(cable.srv, *arguments)
    mine, other = Peer(cable), Peer(cable, mac=bytes.fromhex(ONE.replace(":", "")))
    cable.cli.ip("link set eth0 promisc on")
    address = {"src": mine.mac, "dst": BROADCAST}
    mine.ask(frame(2, mask(1, (1, mine.mac)), slot=0, **address))  # type: ignore[arg-type]
    mine.ask(frame(3, reserve(1, mine.mac), slot=1, **address))  # type: ignore[arg-type]
    mine.ask(frame(3, reserve(1, mine.mac), slot=2, **address))  # type: ignore[arg-type]
    assert export(tmp_path, "set", "16.2", "--reserve", "").returncode == 0
    assert eventually(lambda: kept(tmp_path / "state") == (1, 1))
    server.kill()
    server.wait(PATIENCE)
    start(cable.srv, *arguments)
    assert [mine.ask(mine.read(0, slot=slot)).status for slot in range(3)] == [0x40] * 3
    other.send(other.read(0, slot=0))
    assert other.receive(0.3) is None, "the mask was lost"
    assert other.ask(other.read(0, slot=1)).error == 6, "the reservation was lost"
    assert other.ask(other.read(0, slot=2)).status == 0x40, "the administrator was overridden"


def test_a_state_file_that_cannot_be_saved_is_said(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    """To who sets something, and at the end; once there is room, what was set is saved."""
    disk, state = image(tmp_path / "a.img"), tmp_path / "state"
    server = start(cable.srv, "--export", f"16.0={disk}", "--state", str(state))
    (tmp_path / "state.new").mkdir()  # what it would write first
    for command in (("set", "16.0", "--config", "seat 7"), ("remove", "16.0")):
        done = export(tmp_path, *command)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "state: cannot be saved" in done.stderr
        assert "make room" in done.stderr
    (tmp_path / "state.new").rmdir()
    assert export(tmp_path, "add", f"16.0={disk}").returncode == 0
    assert "'seat 7'" in export(tmp_path, "list").stdout
    assert export(tmp_path, "set", "16.0", "--config", "seat 8").returncode == 0
    assert b"seat 8".hex() in state.read_text()
    (tmp_path / "state.new").mkdir()
    assert export(tmp_path, "set", "16.0", "--config", "").returncode == 1
    server.send_signal(signal.SIGTERM)
    _, said = server.communicate(timeout=PATIENCE)
    assert server.returncode == 1
    assert "are lost" in said.splitlines()[-1]


def test_a_state_file_that_cannot_be_made_is_said(cable: Cable, tmp_path: Path) -> None:
    path = "/nonexistent/state"
    said = refused(cable.srv, "--export", f"16.0={image(tmp_path / 'a')}", "--state", path)
    assert f"{path}: cannot be made (no such folder)" in said


def test_a_damaged_state_file_is_said(cable: Cable, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("{")
    disk = image(tmp_path / "a.img")
    says = refused(cable.srv, "--export", f"16.0={disk}", "--state", str(tmp_path / "state"))
    assert "is damaged" in says


# Two servers


def test_a_second_server_at_the_same_address_is_refused(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    start(cable.cli, "--export", f"16.0={disk}", name="other")
    says = refused(cable.srv, "--export", f"16.0={disk}")
    assert "16.0 is served on eth0 by" in says
    assert "and not shared" in refused(cable.srv, "--export", f"16.0={disk}", "--shared")
    # Another address is nobody's business; adding the taken one later is refused as well.
    later = [sys.executable, "-c", PATIENT_LATER]
    start(cable.srv, "--export", f"16.1={disk}", program=later)
    added = export(tmp_path, "add", f"16.0={disk}")
    assert added.returncode == 1
    assert "16.0 is served on eth0 by" in added.stderr


def test_identical_images_may_be_shared(start: Start, cable: Cable, tmp_path: Path) -> None:
    disk, other = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    copy = tmp_path / "copy.img"
    copy.write_bytes(disk.read_bytes())
    start(cable.cli, "--export", f"16.0={disk}", "--shared", name="other")
    assert "with another image" in refused(cable.srv, "--export", f"16.0={other}", "--shared")
    says = refused(cable.srv, "--export", f"16.0={copy},rw", "--shared")
    assert "give another address" in says
    start(cable.srv, "--export", f"16.0={copy}", "--shared")


def test_vblade_is_a_rival_too(start: Start, cable: Cable, tmp_path: Path) -> None:

    requires("vblade")
    disk = image(tmp_path / "a.img", 1 << 20)
    vblade(cable.cli, 7, 1, disk, "-r")
    assert "7.1 is served on eth0 by" in refused(cable.srv, "--export", f"7.1={disk}")
    assert "and not shared" in refused(cable.srv, "--export", f"7.1={disk}", "--shared")
