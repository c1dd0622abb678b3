"""The storm: clients of every server come to run, wrong data is noticed, nothing is left."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import stormreport, trace
from bench.storm import TRACE, Cable, options, storm
from bench.stormservers import NEEDED, ROOMS, WITH_HTTP, Images, Vblade
from bench.trace import Kind
from pxed.errors import HostError
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import requires

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bench", "storm"]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: pxed's control socket is in there, and a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="st-", dir="/var/tmp") as name:
        yield Path(name)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("server", ["pxed", "vblade", "nbd", "floor"])
def test_clients_come_to_run(server: str, tmp_path: Path) -> None:
    requires("gcc", "taskset", *NEEDED[server])
    out = tmp_path / "out.json"
    done = run(
        "--clients", "5", "--server", server, "--share", "0.05", "--limit", "60",
        "--json", str(out), "--dir", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    (found,) = json.loads(out.read_text())["storms"]
    assert found["running"] == len(found["run_s"]) == 5
    assert found["wrong"] == found["failed"] == found["bad_sectors"] == 0
    boot = trace.shorten(trace.load(TRACE), 0.05)
    singles = sum(-(-op.count // 2) for op in boot.ops if op.kind is trace.Kind.SINGLE)
    assert found["latency"]["ipxe"]["count"] == (0 if server == "nbd" else 5 * singles)
    if server != "floor":
        disk = 512 * boot.total(trace.Kind.SINGLE) if server == "nbd" else 0
        assert found["tftp_bytes"] == 5 * (boot.total(trace.Kind.TFTP) + disk)
        assert found["written_bytes"] > 0
    if server == "pxed":
        assert found["server_running"] == 5
        assert found["drops"] == 0
    assert found["t50_s"] <= found["t95_s"] <= found["t100_s"]
    assert found["server_cpu_s"] > 0
    assert list(tmp_path.iterdir()) == [out]


HTTP = TRACE.with_name("minimal-http.trace")


@pytest.mark.parametrize("server", ["pxed", "vblade", "nbd"])
def test_clients_that_load_by_http_come_to_run(server: str, tmp_path: Path) -> None:
    requires("gcc", "taskset", *WITH_HTTP[server])
    boot = trace.shorten(trace.load(HTTP), 0.1)
    # As UEFI asks before it loads, and as what loads a disk by HTTP would.
    image = next(op for op in boot.ops if op.blob.endswith(b"/initrd"))
    asked = (
        replace(image, device=trace.Part.HEAD, count=0, after=1),
        replace(image, device=trace.Part.RANGE, lba=4711, count=100_001, after=1),
    )
    at = boot.ops.index(image)
    boot = replace(boot, ops=(*boot.ops[:at], *asked, *boot.ops[at:]))
    found = measured(server, boot, Images(tmp_path, boot), clients=5)
    assert found["running"] == 5, found["stuck"]
    assert found["wrong"] == found["failed"] == found["bad_sectors"] == 0
    files = [op for op in boot.ops if op.kind is Kind.HTTP]
    assert found["latency"]["http"]["count"] == 5 * len(files)
    script = (tmp_path / "tftp/boot/lab@1.ipxe").stat().st_size
    images = sum(op.count for op in files if op.blob.startswith(trace.IMAGE_FILES))
    assert found["http_bytes"] == 5 * (script + images)
    assert found["label"].endswith("nginx") == (server != "pxed")


def test_one_wrong_byte_of_a_file_is_noticed(tmp_path: Path) -> None:
    requires(*WITH_HTTP["vblade"])
    boot = trace.shorten(trace.load(HTTP), 0.05)
    images = Images(tmp_path, boot)
    served = tmp_path / "served"
    shutil.copytree(images.files, served)
    with (served / "image/lab@1/initrd").open("r+b") as file:
        file.seek(50_000)
        file.write(b"!")
    told, images.files = images.files, served

    class Lying(Vblade):
        def start(self) -> None:
            super().start()
            self.words["files"] = told

    ROOMS["lying"] = Lying
    try:
        found = measured("lying", boot, images)
    finally:
        del ROOMS["lying"]
    assert found["wrong"] == 2  # once for each client
    assert "WRONG DATA" in stormreport.faults(found)[0]


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    requires(*WITH_HTTP["vblade"])
    boot = trace.shorten(trace.load(HTTP), 0.05)
    images = Images(tmp_path, boot)
    empty = tmp_path / "served"
    empty.mkdir()
    (empty / "undionly.kpxe").write_bytes((images.files / "undionly.kpxe").read_bytes())
    told, images.files = images.files, empty

    class Empty(Vblade):
        def start(self) -> None:
            super().start()
            self.words["files"] = told

    ROOMS["empty"] = Empty
    try:
        found = measured("empty", boot, images, "--limit", "6")
    finally:
        del ROOMS["empty"]
    assert found["running"] == 0
    assert found["failed"] == 2


@pytest.fixture
def short() -> trace.Trace:
    return trace.shorten(trace.load(TRACE), 0.02)


def measured(
    name: str, boot: trace.Trace, images: Images, *words: str, clients: int = 2
) -> dict[str, Any]:
    requires("gcc", "taskset")
    return storm(name, clients, boot, images, options().parse_args(["--limit", "90", *words]))


def test_one_wrong_byte_is_noticed(tmp_path: Path, short: trace.Trace) -> None:
    images = Images(tmp_path, short)
    first = next(op for op in short.ops if op.kind is trace.Kind.SINGLE)
    with images.floor.open("r+b") as file:
        file.seek(first.lba * 512 + 3)
        file.write(b"!")
    found = measured("floor", short, images)
    assert found["wrong"] == 2  # once for each client
    assert "WRONG DATA" in stormreport.faults(found)[0]
    assert not stormreport.sound({"storms": [found | {"server": "pxed"}]})


def test_a_shaped_link_is_the_limit(tmp_path: Path, short: trace.Trace) -> None:
    found = measured("floor", short, Images(tmp_path, short), "--link", "10M")
    assert found["running"] == 2
    # The burst is sent at once.
    assert found["t100_s"] > 0.5 * (found["link_s"] - 0.2)


def test_clients_that_do_not_get_there_are_counted(tmp_path: Path, short: trace.Trace) -> None:
    found = measured("pxed", short, Images(tmp_path, short), "--think", "10", "--limit", "2")
    assert found["running"] == 0
    assert found["t100_s"] is found["fairness"] is None
    assert "2 clients do not run" in " ".join(stormreport.faults(found))
    assert not stormreport.sound({"storms": [found | {"server": "pxed"}]})


def test_a_server_that_ends_is_said(tmp_path: Path, short: trace.Trace) -> None:
    images = Images(tmp_path, short)
    images.floor.write_bytes(b"")
    with pytest.raises(HostError, match="floor"):
        measured("floor", short, images)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_storm_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    requires("gcc", "taskset")
    child = subprocess.Popen(
        [*COMMAND, "--clients", "3", "--server", "pxed", "--dir", str(tmp_path), "--think", "1000"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert eventually(lambda: list(tmp_path.glob("pxed-storm-*/pxed-3/state/control.sock")))
    child.send_signal(number)
    child.communicate(timeout=PATIENCE)
    if number != signal.SIGKILL:
        assert child.returncode == 130
        assert list(tmp_path.iterdir()) == []
    assert eventually(lambda: not processes_of(tmp_path)), processes_of(tmp_path)
    done = run("--clients", "1", "--server", "floor", "--share", "0.01", "--dir", str(tmp_path))
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def processes_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--clients", "0"], ["--clients", "x"], ["--share", "0"], ["--link", "fast"],
        ["--link", "0G"], ["--mtu", "100"], ["--server", "nothing"], ["--rounds", "0"],
    ],
)  # fmt: skip
def test_wrong_options_are_a_usage_error(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_a_trace_that_is_none_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    done = run("--trace", str(tmp_path / "x"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "bench record" in done.stderr


def test_a_boot_from_another_web_server_is_refused(tmp_path: Path, short: trace.Trace) -> None:
    ops = (trace.Op(trace.Kind.HTTP, count=5, blob=b"/vmlinuz"), trace.Op(trace.Kind.RUNNING))
    by_http = trace.Trace(short.boot_sectors, short.root_sectors, ops)
    (tmp_path / "x").write_bytes(trace.encode(by_http))
    done = run("--trace", str(tmp_path / "x"))
    assert done.returncode == 1
    assert "/vmlinuz" in done.stderr


def test_a_cable_goes_with_its_end() -> None:
    cable = Cable(10**9)
    assert cable.dropped() == 0
    cable.close()
    cable.close()


def test_the_gate_measures(tmp_path: Path) -> None:
    requires("gcc", "taskset")
    done = subprocess.run(
        [*COMMAND[:3], "check", "--json", "--only", "read-1k / floor, CPU"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    assert row["value"] > 0
    assert done.returncode == (0 if row["within"] else 1)
