"""The benchmark runs, verifies data and says what it found. No figure has a bound: noise."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import pattern, rows
from bench.aoe import summary, sweep
from bench.report import plot, show, show_wanted
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import requires

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("row", ["read-1k", "write-8k", "durable-private", "cold-few", "storm"])
def test_a_row_is_measured(row: str, tmp_path: Path) -> None:
    requires("gcc", "vblade", "taskset", "nsenter")
    out = tmp_path / "out.json"
    done = run(
        "aoe", "--quick", "--runs", "1", "--seconds", "0.1", "--only", row,
        "--json", str(out), "--dir", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["rows"][row]
    assert set(found["cases"]) == {case.label for case in rows.BY_NAME[row].cases}
    for label, figures in found["cases"].items():
        assert figures["replies"] > 0, label
        assert figures["wrong"] == figures["failed"] == 0, label
        assert figures["server_cpu_ns"] > 0, label
        assert figures["p50_us"] <= figures["p99_us"] <= figures["p999_us"], label
    for ratio in found["ratios"]:
        assert ratio["median"] > 0
    assert rows.BY_NAME[row].title in done.stdout
    # Its images are gone, and so is everything it started.
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    requires("gcc", "vblade", "taskset", "nsenter")
    argv = [sys.executable, "-m", "bench", "aoe", "--only", "read-1k", "--dir", str(tmp_path)]
    argv += ["--runs", "100"]  # it does not come to its end by itself
    bench = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert eventually(lambda: list(tmp_path.glob("*/1-0.img")))
    time.sleep(1.5)
    bench.send_signal(number)
    _, complaint = bench.communicate(timeout=PATIENCE)
    assert bench.returncode in (130, 143)
    assert b"Traceback" not in complaint
    assert not list(tmp_path.iterdir())


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead, alive = tmp_path / "pxed-bench-aoe-dead", tmp_path / "pxed-bench-aoe-alive"
    for path in (dead, alive):
        path.mkdir()
        (path / "lock").touch()
        (path / "1-0.img").write_bytes(b"x")
    with (alive / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


def test_a_wrong_image_is_noticed(tmp_path: Path) -> None:
    requires("gcc", "taskset", "nsenter")
    from bench.aoe import Bench
    from pxed.errors import HostError

    bench = Bench(rows.BY_NAME["read-1k"], tmp_path, 0.1)
    try:
        case = rows.BY_NAME["read-1k"].cases[0]
        for path in bench.images(case):
            path.write_bytes(bytes(1 << 20))
        with pytest.raises(HostError, match="wrong data"):
            bench.measure(case)
    finally:
        bench.close()


@pytest.mark.parametrize(
    "arguments", [["aoe", "--only", "nothing"], ["aoe", "--runs", "0"], ["nothing"], []]
)
def test_wrong_options_are_a_usage_error(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_every_subcommand_is_listed() -> None:
    listed = run().stderr
    assert "aoe" in listed
    assert "instructions" in listed


def test_an_image_says_what_each_sector_is(tmp_path: Path) -> None:
    path = tmp_path / "image"
    pattern.make(path, 1 << 20, export=3, piece=4096)
    words = np.fromfile(path, dtype=np.uint64).reshape(-1, 64)
    assert (words[7:9] == pattern.sectors(3, 7, 2)).all()
    assert pattern.count_written(path, 0, 3) == len(words)
    with path.open("r+b") as file:
        file.seek(512 * 5)
        file.write(pattern.sectors(3, 5, 2, version=2).tobytes())
    assert pattern.count_written(path, 2, 3) == 2
    assert pattern.count_written(path, 3, 3) == 0
    with path.open("r+b") as file:
        file.seek(512 * 5 + 256)
        file.write(b"torn")
    with pytest.raises(ValueError, match="sector 5"):
        pattern.count_written(path, 2, 3)


def test_ratios_are_taken_within_a_round(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = rows.BY_NAME["read-1k"]
    names = ["cpu_ns", "iops", "mb_s", "p50_us", "p99_us", "p999_us", "lost", "own_ns"]
    found = {
        label: [dict.fromkeys(names, factor * weather) for weather in (1.0, 5.0, 2.0)]
        for label, factor in (("ours", 1.0), ("vblade", 4.0), ("floor", 1.0))
    }
    said = summary(row, found)
    assert [ratio["median"] for ratio in said["ratios"]] == [0.25, 1.0, 0.25]
    show("read-1k", said)
    results = {
        "rows": {"read-1k": said}, "rounds": 3, "seconds": 1.0, "load_after": 0.0,
        "machine": {"cpu": "?", "cpus": 2, "kernel": "6", "load_before": 0.0},
    }  # fmt: skip
    show_wanted(results)
    out = capsys.readouterr().out
    assert "ours / vblade, CPU per request: 0.25" in out
    assert "wanted <= 0.45: reached" in out
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pxed[bench]'")
    plot(results, tmp_path)
    assert (tmp_path / "read-1k.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("value", "wanted", "is_reached"),
    [(0.45, "<= 0.45", True), (0.46, "<= 0.45", False), (10, ">= 10", True), (1, "== 0", False)],
)
def test_what_is_reached(value: float, wanted: str, is_reached: bool) -> None:
    assert rows.reached(value, wanted) is is_reached
