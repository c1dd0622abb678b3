"""AoE: our server, Debian's vblade and the floor on one image, alternating; CPU, IOPS, latency."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import native, pattern, report
from bench.rows import BY_NAME, ROWS, Case, Row
from bench.servers import (
    GENERATOR_CPU,
    Served,
    alone,
    ksoftirqd,
    start_floor,
    start_ours,
    start_vblade,
)
from pxed.errors import HostError, PxedError
from pxed.lab.netns import Namespace, veth

TARGET_MAC = "02:77:00:00:00:01"

Figures = dict[str, float]


class Bench:
    """Two namespaces with a cable between them, and a directory of images, for one row."""

    def __init__(self, row: Row, directory: Path, seconds: float) -> None:
        self._row, self._seconds = row, seconds
        self._exports = max(case.load.get("exports", 1) for case in row.cases)
        self._images: dict[int, list[Path]] = {}
        self._directory = directory
        self._version = 0
        self._server = Namespace("server")
        self._client = Namespace("client")
        veth(self._server, "eth0", self._client, "eth0")
        self._server.ip(f"link set eth0 address {TARGET_MAC}")
        for space in (self._server, self._client):
            space.ip(f"link set eth0 mtu {row.mtu}")
            # So that nothing but the bench's own frames is on the cable.
            space.run(["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"], check=False)

    def close(self) -> None:
        """Give up everything; closing twice is fine."""
        self._server.close()
        self._client.close()

    def images(self, case: Case) -> list[Path]:
        """The files of a case, made when first asked for: as many bytes for every case."""
        count = case.load.get("exports", 1)
        if count not in self._images:
            size = self._row.size // count
            paths = [self._directory / f"{count}-{number}.img" for number in range(count)]
            for number, path in enumerate(paths):
                # As clients write: in pages.
                pattern.make(path, size, number, *([4096] if self._row.writes else []))
            self._images[count] = paths
        found = list(self._images[count])
        if case.beside:
            cold = self._directory / "cold.img"
            if not cold.exists():
                pattern.make(cold, self._row.size, count)
            if case.beside_warm:
                _read_in(cold)
            else:
                pattern.forget(cold)
            found.append(cold)
        return found

    def _start(self, case: Case, images: Sequence[Path]) -> Served:
        if case.server == "ours":
            return start_ours(self._server, images, case.load["clients"], **case.options)
        if case.server == "floor":
            return start_floor(self._server, images[0])
        return start_vblade(self._server, images, **case.vblade)

    def _load(
        self, load: dict[str, Any], images: Sequence[Path], seconds: float, pids: Sequence[int]
    ) -> subprocess.Popen[Any]:
        span = images[0].stat().st_size // pattern.SECTOR
        words = {
            "interface": "eth0", "target": TARGET_MAC, "span": span, "seconds": seconds,
            "pids": ",".join(map(str, pids)), "seed": time.monotonic_ns() % 1000003,
            "version": self._version, **load,
        }  # fmt: skip
        argv = ["taskset", "-c", str(GENERATOR_CPU), str(native.program("generator"))]
        argv += [f"{key}={value}" for key, value in words.items()]
        return self._client.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def measure(self, case: Case) -> Figures:
        """Start the server, warm it up, load it, end it; the figures of the loaded part."""
        images = self.images(case)
        self._version += 1
        server = self._start(case, images)
        try:
            warm = _finish(self._load(case.load, images, min(0.3, self._seconds / 2), []))
            pids = [*server.pids(), *ksoftirqd()]
            before = server.counters()
            load = dict(case.load)
            if case.beside:
                load |= {"beside": len(images) - 1, "beside_rate": case.beside}
            found = _finish(self._load(load, images, self._seconds, pids))
            after = server.counters()
        finally:
            server.stop()
        self._check(case, images, [warm, found])
        said = {name: after[name] - before[name] for name in after}
        replies = max(1.0, found["replies"])
        found["spin_ns"] = said.get("spin_ns", 0)
        found["cpu_ns"] = (found["server_cpu_ns"] - found["spin_ns"]) / replies
        found["cpu_with_spin_ns"] = found["server_cpu_ns"] / replies
        found["server_drops"] = said.get("drops", 0)
        found["batch"] = said["replies"] / max(1, said["batches"]) if "batches" in said else 0
        if case.load.get("discover"):
            expected = max(case.load["clients"], case.load.get("exports", 1))
            found["undiscovered"] = expected - found["discovered"]
        return found

    def _check(self, case: Case, images: Sequence[Path], loads: Sequence[Figures]) -> None:
        """What the generator could not see: acknowledged writes are in the file."""
        if case.load.get("op") != "write":
            return
        per = case.load["sectors"]
        places = sum(path.stat().st_size for path in images) // pattern.SECTOR / per
        wrote = sum(
            pattern.count_written(path, self._version, number) for number, path in enumerate(images)
        )
        # Random places: so many of them are hit at least once. What timed out may be written too.
        replies = sum(load["replies"] for load in loads)
        lost = sum(load["lost"] for load in loads)
        least, most = (places * (1 - (1 - 1 / places) ** n) for n in (replies, replies + lost))
        if not 0.97 * least - 10 <= wrote / per <= 1.03 * most + 10:
            raise HostError(f"{case.label}: {wrote / per:.0f} places written, not {least:.0f}")


def _read_in(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _finish(load: subprocess.Popen[Any]) -> Figures:
    """What a load says at its end; HostError if it failed or a reply was wrong."""
    out, complaint = load.communicate(timeout=120)
    if load.returncode != 0:
        raise HostError(f"the generator failed: {complaint.decode().strip()}")
    figures: Figures = json.loads(out)
    if figures["wrong"] or figures["failed"]:
        raise HostError(
            f"{figures['wrong']:.0f} replies with wrong data, {figures['failed']:.0f} with errors"
        )
    return figures


@contextmanager
def _bench(row: Row, directory: Path | None, seconds: float) -> Iterator[Bench]:
    parent = directory or Path(tempfile.gettempdir())
    sweep(parent)
    with (
        tempfile.TemporaryDirectory(prefix="pxed-bench-aoe-", dir=parent) as name,
        (Path(name) / "lock").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        bench = Bench(row, Path(name), seconds)
        try:
            yield bench
        finally:
            bench.close()


def sweep(parent: Path) -> None:
    """Remove the images of a bench that was killed: nobody holds their lock any more."""
    for path in parent.glob("pxed-bench-aoe-*"):
        with contextlib.suppress(OSError), (path / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)


def run_row(
    row: Row, runs: int, seconds: float, directory: Path | None = None
) -> dict[str, list[Figures]]:
    """Case label -> the figures of each of ``runs`` rounds; the cases take turns."""
    found: dict[str, list[Figures]] = {case.label: [] for case in row.cases}
    with _bench(row, directory, seconds) as bench:
        for turn in range(runs):
            for case in row.cases:
                found[case.label].append(bench.measure(case))
                report.progress(row.name, turn, runs, case.label, found[case.label][-1])
    return found


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of every figure over the rounds."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def summary(row: Row, found: dict[str, list[Figures]]) -> dict[str, Any]:
    """One row's result: medians of each case, and the median of each round's ratios."""
    ratios = []
    for ratio in row.ratios:
        each = [
            a[ratio.value] / b[ratio.value]
            for a, b in zip(found[ratio.of], found[ratio.to], strict=True)
            if b[ratio.value]
        ]
        if not each:
            continue
        ratios.append({
            "of": ratio.of, "to": ratio.to, "value": ratio.value, "wanted": ratio.wanted,
            "median": statistics.median(each), "least": min(each), "most": max(each),
        })  # fmt: skip
    cases = {label: medians(runs) for label, runs in found.items()}
    limits = [
        {"of": label, "value": value, "wanted": wanted,
         # One lost frame in any round is one too many; latency is a median.
         "median": max(run[value] for run in found[label]) if wanted.startswith("==")
         else cases[label][value]}
        for label, value, wanted in row.limits
    ]  # fmt: skip
    return {"title": row.title, "cases": cases, "ratios": ratios, "limits": limits, "runs": found}


def main(argv: Sequence[str]) -> int:
    """Measure, print, write what was asked for; exit status 1 if the host cannot do it."""
    parser = argparse.ArgumentParser(prog="python -m bench aoe", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 5")
    parser.add_argument("--runs", type=int, help="rounds for each row")
    parser.add_argument("--seconds", type=float, help="length of each measurement")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), metavar="ROW",
                        help="one of " + ", ".join(BY_NAME) + "; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw them (needs matplotlib)")
    parser.add_argument("--dir", type=Path, help="where images are made: on the disk to measure")
    asked = parser.parse_args(argv)
    runs = (3 if asked.quick else 5) if asked.runs is None else asked.runs
    seconds = (0.5 if asked.quick else 2.0) if asked.seconds is None else asked.seconds
    rows = [BY_NAME[name] for name in asked.only] if asked.only else list(ROWS)
    if runs < 1 or not 0.05 <= seconds <= 600:
        parser.error("--runs: at least 1; --seconds: 0.05 to 600")
    if why := alone():
        print(f"bench aoe: {why}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # images and processes go then, too
    results: dict[str, Any] = {"machine": report.machine(), "seconds": seconds, "rounds": runs}
    results["rows"] = {}
    try:
        for row in rows:
            results["rows"][row.name] = summary(row, run_row(row, runs, seconds, asked.dir))
            report.show(row.name, results["rows"][row.name])
    except (PxedError, ValueError) as error:
        print(f"bench aoe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench aoe: interrupted", file=sys.stderr)
        return 130
    finally:
        results["load_after"] = os.getloadavg()[0]
        if asked.json:
            asked.json.write_text(json.dumps(results, indent=1) + "\n")
    report.show_wanted(results)
    if asked.plot:
        report.plot(results, asked.plot)
    return 0
