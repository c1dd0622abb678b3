"""What a storm's figures mean: percentiles, ratios, faults, plots; the options."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench import stormreport as report
from bench.storm import parse_rate
from bench.trace import Kind, Op, Trace

BOOT = Trace(10, 10, (Op(Kind.DHCP), Op(Kind.RUNNING)))


def storm(times: list[float], clients: int | None = None, **more: Any) -> dict[str, Any]:
    """The figures of a storm in which these clients came to run."""
    empty: dict[str, Any] = {"count": 0, "worst_us": 0.0, "buckets": []}
    found: dict[str, Any] = {
        "clients": clients or len(times), "running": len(times), "run_s": times, "seconds": 9.0,
        "latency": {kind: dict(empty) for kind in ("ipxe", "read", "write", "dhcp", "tftp")},
        "stuck": [[7, 3, 2]], "wrong": 0, "failed": 0, "stray": 0, "lost": 0, "drops": 0,
        "switch_drops": 0, "bad_sectors": 0, "server_running": -1, "memory": 100 << 20,
        "again": {"dhcp": 0, "tftp": 0, "ipxe": 0, "aoe": 0}, "up_bytes": 10, "down_bytes": 1000,
        "server_cpu_s": 2.0, "own_cpu_s": 1.0, "server": "pxed", "label": "pxed", "round": 0,
        "cpu_times": {"busy": 2.0, "idle": 7.0, "stolen": 0.0},
    }  # fmt: skip
    found |= more
    return report.derive(found, more.get("requests", 1000), more.get("rate", 0))


def test_when_so_many_run() -> None:
    found = storm([float(n) for n in range(1, 201)])
    assert (found["t50_s"], found["t95_s"], found["t100_s"]) == (100.0, 190.0, 200.0)
    assert found["fairness"] == pytest.approx(200 / 100.5)
    assert (storm([3.0])["t50_s"], storm([3.0])["t100_s"]) == (3.0, 3.0)


def test_when_not_all_run() -> None:
    found = storm([1.0, 2.0, 3.0], clients=4)
    assert found["t50_s"] == 2.0
    assert found["t95_s"] is found["t100_s"] is found["fairness"] is None
    assert "1 clients do not run: number 7 is at operation 3" in " ".join(report.faults(found))
    assert not report.sound({"storms": [found]})


def test_costs() -> None:
    found = storm([1.0] * 10, requests=4000, rate=8000)
    assert found["cpu_request_ns"] == pytest.approx(2.0 / 4000 * 1e9)
    assert found["cpu_client_s"] == pytest.approx(0.2)
    assert found["link_s"] == pytest.approx(1.0)  # the busier direction


def test_percentiles_are_of_all_counts() -> None:
    buckets = [(1.0, 990), (50.0, 9), (700.0, 1)]
    assert [report.percentile(buckets, part) for part in (0.5, 0.995, 0.999, 1)] == [1, 50, 50, 700]
    assert report.percentile([], 0.5) == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"wrong": 1}, "WRONG DATA"), ({"bad_sectors": 2}, "WRONG DATA"), ({"failed": 1}, "errors"),
        ({"drops": 3}, "dropped: server 3"), ({"lost": 1}, "clients 1"),
        ({"switch_drops": 4}, "switch 4"), ({"server_running": 1}, "says that 1 run"),
        ({"again": {"aoe": 2, "dhcp": 0}}, "sent again: aoe 2"),
        ({"cpu_times": {"busy": 4.0, "idle": 0, "stolen": 0.0}}, "not a quiet run"),
    ],
)  # fmt: skip
def test_faults_are_said(wrong: dict[str, Any], words: str) -> None:
    assert not report.faults(storm([1.0, 1.0]))
    assert words in " ".join(report.faults(storm([1.0, 1.0], **wrong)))


def test_wrong_data_is_not_sound() -> None:
    assert report.sound({"storms": [storm([1.0])]})
    assert not report.sound({"storms": [storm([1.0], wrong=1)]})
    # Another server's is its own trouble.
    assert report.sound({"storms": [storm([1.0], wrong=1, server="vblade")]})


def test_ratios_are_taken_within_a_round_and_a_bound_where_the_other_did_not_end() -> None:
    storms = []
    for turn, weather in enumerate((1.0, 5.0, 2.0)):
        storms.append(storm([1.0 * weather], round=turn))
        storms.append(storm([10.0 * weather], round=turn, server="vblade", label="v"))
    storms.append(storm([], clients=1, server="nbd", label="n", seconds=100.0))
    rows = report.ratios({"storms": storms})
    times = {row["to"]: row for row in rows if row["what"] == "t100_s"}
    assert times["v"]["median"] == pytest.approx(0.1)
    assert times["n"]["bound"]
    assert times["n"]["median"] == pytest.approx(0.01)


def test_scaling_is_from_ten_clients_on() -> None:
    storms = [storm([1.0] * n, requests=100 * n, server_cpu_s=cost * n)
              for n, cost in ((1, 9.0), (10, 1.0), (1000, 1.1))]  # fmt: skip
    found = report.scaling({"storms": storms})
    assert found is not None
    assert found[:2] == (10, 1000)
    assert found[2] == pytest.approx(1.1)
    assert report.scaling({"storms": storms[:2]}) is None


def test_what_ours_is_held_to() -> None:
    judged = {what: good for what, _, _, good in report.wanted(storm([1.0, 1.0, 2.0], rate=8000))}
    assert judged["wrong data"]
    assert judged["memory, MiB"]
    assert not judged["slowest / median"]
    assert not judged["time / link's own"]


def test_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buckets = {"count": 3, "worst_us": 9.0, "buckets": [[1.0, 2], [9.0, 1]]}
    ours, theirs = storm([1.0, 1.2]), storm([9.0, 9.9], server="vblade", label="other")
    for found in (ours, theirs):
        found["latency"]["ipxe"] = buckets
    machine = {"cpu": "?", "cpus": 2, "kernel": "6"}
    results = {"storms": [ours, theirs], "machine": machine, "rate": 10**9, "mtu": 1500,
               "frames": 5, "think": 0.0}  # fmt: skip
    report.show_head(results, BOOT)
    report.show(ours)
    report.show_ratios(results)
    said = capsys.readouterr().out
    assert "pxed / other, 2 clients, time until all run: 0.121" in said
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pxed[bench]'")
    report.plot(results, tmp_path)
    names = {"time-to-run.png", "latency.png", "cpu.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    saved = tmp_path / "storm.json"
    saved.write_text(json.dumps(results))
    again = tmp_path / "again"
    assert report.main([str(saved), str(saved), "--plot", str(again)]) == 0
    assert {path.name for path in again.iterdir()} == names
    for path in again.iterdir():
        assert 1000 < path.stat().st_size < 60_000


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"storms": []}'])
def test_a_file_without_storms_is_said(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "storm.json"
    path.write_text(text)
    assert report.main([str(path), "--plot", str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(("text", "rate"), [("none", 0), ("1G", 10**9), ("100M", 10**8)])
def test_links(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "1", "G", "-1G", "1.5G", "1X"])
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_rate(text)
