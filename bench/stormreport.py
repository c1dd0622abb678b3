"""What a storm's figures mean: percentiles, costs, ratios; tables and plots.

    python -m bench stormreport STORM.json [MORE.json ...] --plot DIR

draws what ``bench storm --json`` wrote: times and latencies of the first file, CPU by number of
clients of all of them.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.trace import Trace

Figures = dict[str, Any]

MEMORY_BASE, MEMORY_EACH = 150 << 20, 64 << 10
FAIR = 1.3
_VERSIONS = {
    "dnsmasq": ["dnsmasq", "--version"],
    "vblade": ["dpkg-query", "-W", "-f", "${Version}", "vblade"],
    "tftpd-hpa": ["dpkg-query", "-W", "-f", "${Version}", "tftpd-hpa"],
    "nbdkit": ["nbdkit", "--version"],
}


def share(sorted_values: Sequence[float], part: float) -> float:
    """The value that ``part`` of the values do not exceed; 0 without values."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, max(0, round(part * len(sorted_values)) - 1))]


def percentile(buckets: Sequence[tuple[float, int]], part: float) -> float:
    """The lower end of the bucket that the ``part`` of all counts falls into."""
    total = sum(count for _, count in buckets)
    seen = 0
    for value, count in buckets:
        seen += count
        if seen >= part * total:
            return value
    return 0.0


def derive(found: Figures, requests: int, rate: int) -> Figures:
    """Adds to the generator's and the server's numbers what they mean.

    ``requests``: AoE reads and writes of all these boots, also where the server is asked otherwise.
    """
    times = sorted(found["run_s"])
    clients = found["clients"]
    all_run = found["running"] == clients
    for part, name in ((0.5, "t50_s"), (0.95, "t95_s"), (1.0, "t100_s")):
        enough = found["running"] >= part * clients
        found[name] = times[max(0, -(-int(clients * part * 100) // 100) - 1)] if enough else None
    found["fairness"] = times[-1] / statistics.median(times) if all_run else None
    aoe: dict[float, int] = {}
    for kind in ("ipxe", "read", "write"):
        for value, count in found["latency"][kind]["buckets"]:
            aoe[value] = aoe.get(value, 0) + count
    together = sorted(aoe.items())
    found["requests"] = requests
    for part, name in ((0.5, "p50_us"), (0.99, "p99_us"), (0.999, "p999_us")):
        found[name] = percentile(together, part)
    for kind in ("ipxe", "read", "write"):
        found[f"{kind}_p999_us"] = percentile(found["latency"][kind]["buckets"], 0.999)
    found["cpu_request_ns"] = found["server_cpu_s"] / max(1, requests) * 1e9
    found["cpu_client_s"] = found["server_cpu_s"] / clients
    found["memory_client"] = found["memory"] / clients
    found["sent_again"] = sum(found["again"].values())
    others = found["cpu_times"]["busy"] - found["server_cpu_s"]
    found["others_s"] = max(0.0, others) + found["cpu_times"]["stolen"]
    busier = max(found["up_bytes"], found["down_bytes"])
    found["link_s"] = busier * 8 / rate if rate else None
    return found


def faults(found: Figures) -> list[str]:
    """What is wrong with a storm, in words; wrong data first."""
    said = []
    if found["wrong"] or found["bad_sectors"]:
        said.append(f"WRONG DATA: {found['wrong']} replies, {found['bad_sectors']} sectors written")
    if found["failed"]:
        said.append(f"{found['failed']} replies with errors")
    if found["running"] < found["clients"]:
        number, at, stage = found["stuck"][0]
        said.append(f"{found['clients'] - found['running']} clients do not run: number {number} is "
                    f"at operation {at}, stage {stage}")  # fmt: skip
    if 0 <= found["server_running"] < found["clients"]:
        said.append(f"the server says that {found['server_running']} run")
    if found["drops"] > 0 or found["lost"] or found["switch_drops"]:
        said.append(f"frames dropped: server {max(0, found['drops'])}, clients {found['lost']}, "
                    f"switch {found['switch_drops']}")  # fmt: skip
    if found["sent_again"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found["again"].items() if count)
        said.append(f"{found['sent_again']} requests sent again: {kinds}")
    if found["others_s"] > 0.1 * found["seconds"]:
        said.append(f"others had the server's CPU for {found['others_s']:.1f} s: not a quiet run")
    return said


def wanted(found: Figures) -> list[tuple[str, float, str, bool]]:
    """What our own storm is held to: (what, value, bound, reached)."""
    bound = MEMORY_BASE + MEMORY_EACH * found["clients"]
    rows = [
        ("wrong data", found["wrong"] + found["bad_sectors"], "== 0", None),
        ("frames dropped", max(0, found["drops"]) + found["lost"] + found["switch_drops"], "== 0",
         None),
        ("requests sent again", found["sent_again"], "== 0", None),
        ("slowest / median", found["fairness"], f"<= {FAIR}", None),
        ("memory, MiB", found["memory"] / 2**20, f"<= {bound / 2**20:.0f}", None),
    ]  # fmt: skip
    if found["link_s"] and found["t100_s"]:
        rows.append(("time / link's own", found["t100_s"] / found["link_s"], "<= 1.10", None))
    judged = []
    for what, value, limit, _ in rows:
        number = float(limit.split()[1])
        good = value is not None and (value == number if "==" in limit else value <= number)
        judged.append((what, value if value is not None else float("nan"), limit, good))
    return judged


def sound(results: Figures) -> bool:
    """No storm of ours went wrong: data, clients, errors."""
    ours = [found for found in results["storms"] if found["server"] == "pxed"]
    return all(
        not found["wrong"] and not found["bad_sectors"] and found["running"] == found["clients"]
        for found in ours
    )


# Text


def show_head(results: Figures, boot: Trace) -> None:
    machine = results["machine"]
    link = f"{results['rate'] / 1e9:g} Gbit/s" if results["rate"] else "unshaped"
    print(f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}; {link}, "
          f"MTU {results['mtu']}; each client: {results['frames']} AoE requests, "
          f"think time x {results['think']:g} of {boot.thought():.1f} s")  # fmt: skip
    print(f"{'':22} {'clients':>7} {'50 %':>8} {'95 %':>8} {'100 %':>8} {'p99.9 ms':>9} "
          f"{'CPU s':>7} {'ns/req':>7} {'ms/client':>9} {'MiB':>6} {'again':>6} {'fair':>5} "
          f"{'gen. s':>7}", flush=True)  # fmt: skip


def show(found: Figures) -> None:
    """One storm's line, and what went wrong in it."""

    def seconds(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.2f}"

    fair = "-" if found["fairness"] is None else f"{found['fairness']:.2f}"
    print(f"{found['label']:22} {found['clients']:7} {seconds('t50_s'):>8} {seconds('t95_s'):>8} "
          f"{seconds('t100_s'):>8} {found['p999_us'] / 1e3:9.2f} {found['server_cpu_s']:7.2f} "
          f"{found['cpu_request_ns']:7.0f} {found['cpu_client_s'] * 1e3:9.2f} "
          f"{found['memory'] / 2**20:6.0f} {found['sent_again']:6} {fair:>5} "
          f"{found['own_cpu_s']:7.2f}", flush=True)  # fmt: skip
    for fault in faults(found):
        print(f"  {fault}", flush=True)


def ratios(results: Figures) -> list[Figures]:
    """Our time and CPU to each other server's, in the same round: medians."""
    found = []
    storms = results["storms"]
    for clients in dict.fromkeys(s["clients"] for s in storms):
        for other in dict.fromkeys(s["server"] for s in storms if s["server"] != "pxed"):
            pairs = [
                (ours, theirs)
                for ours in storms
                for theirs in storms
                if (ours["server"], theirs["server"]) == ("pxed", other)
                and ours["round"] == theirs["round"]
                and ours["clients"] == theirs["clients"] == clients
            ]
            for key in ("t100_s", "cpu_client_s", "memory"):
                each = [a[key] / b[key] for a, b in pairs if a[key] and b[key]]
                if each:
                    found.append({"to": pairs[0][1]["label"], "clients": clients, "what": key,
                                  "median": statistics.median(each), "least": min(each),
                                  "most": max(each)})  # fmt: skip
                elif key == "t100_s" and any(a[key] for a, _ in pairs):
                    # It did not end: what there is, is a bound.
                    bound = [a[key] / b["seconds"] for a, b in pairs if a[key]]
                    found.append({"to": pairs[0][1]["label"], "clients": clients, "what": key,
                                  "median": statistics.median(bound), "least": min(bound),
                                  "most": max(bound), "bound": True})  # fmt: skip
    return found


_WHAT = {"t100_s": "time until all run", "cpu_client_s": "server CPU", "memory": "server memory"}


def show_ratios(results: Figures) -> None:
    """Ratios to the others, and what ours was held to."""
    results["ratios"] = ratios(results)
    for row in results["ratios"]:
        less = "at most " if row.get("bound") else ""
        print(f"pxed / {row['to']}, {row['clients']} clients, {_WHAT[row['what']]}: "
              f"{less}{row['median']:.3f} ({row['least']:.3f} to {row['most']:.3f})")  # fmt: skip
    flat = scaling(results)
    if flat:
        print(f"CPU per request, {flat[1]} clients / {flat[0]} clients: {flat[2]:.2f}  "
              f"wanted <= 1.15: {'reached' if flat[2] <= 1.15 else 'NOT REACHED'}")  # fmt: skip
    for found in results["storms"]:
        if found["server"] == "pxed":
            for what, value, limit, good in wanted(found):
                print(f"pxed, {found['clients']} clients, {what}: {value:.2f}  wanted {limit}: "
                      f"{'reached' if good else 'NOT REACHED'}")  # fmt: skip


def scaling(results: Figures) -> tuple[int, int, float] | None:
    """(10 clients or the fewest above, the most, CPU per request of these to those) of ours."""
    ours = [s for s in results["storms"] if s["server"] == "pxed" and s["clients"] >= 10]
    counts = sorted({s["clients"] for s in ours})
    if len(counts) < 2:
        return None
    costs = [
        statistics.median(s["cpu_request_ns"] for s in ours if s["clients"] == count)
        for count in (counts[0], counts[-1])
    ]
    return counts[0], counts[-1], costs[1] / costs[0]


def versions() -> dict[str, str]:
    """What the others are."""
    found = {}
    for name, argv in _VERSIONS.items():
        if shutil.which(argv[0]):
            said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            found[name] = said.splitlines()[0] if said else "?"
    return found


# Plots


def plot(results: Figures, directory: Path, also: Sequence[Figures] = ()) -> None:
    """Clients that run over time, latencies, CPU by number of clients: PNG files.

    ``also``: other runs, of which CPU by number of clients is drawn too.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        sys.exit("bench storm: --plot needs matplotlib: pip install 'pxed[bench]'")
    directory.mkdir(parents=True, exist_ok=True)
    most = max(s["clients"] for s in results["storms"])
    biggest = [s for s in results["storms"] if s["clients"] == most and s["round"] == 0]

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for found in biggest:
        times = sorted(found["run_s"])
        axis.step([0.1, *times], range(len(times) + 1), where="post", label=found["label"])
    axis.set(xlabel="seconds after power-on", ylabel=f"clients of {most} that run", xscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(directory / "time-to-run.png", dpi=120)

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for found in biggest:
        buckets: dict[float, int] = {}
        for kind in ("ipxe", "read", "write"):
            for value, count in found["latency"][kind]["buckets"]:
                buckets[value] = buckets.get(value, 0) + count
        total, seen = max(1, sum(buckets.values())), 0
        points = []
        for value, count in sorted(buckets.items()):
            seen += count
            points.append((max(value, 1.0), 1 - (seen - count) / total))
        axis.plot([p[0] for p in points], [p[1] for p in points], label=found["label"])
    axis.set(xlabel="latency of an AoE request, us", ylabel="share that took longer",
             xscale="log", yscale="log")  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(directory / "latency.png", dpi=120)

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    storms = [storm for run in (results, *also) for storm in run["storms"]]
    for label in dict.fromkeys(s["label"] for s in storms):
        rows = sorted((s["clients"], s["cpu_request_ns"]) for s in storms if s["label"] == label)
        axis.plot([r[0] for r in rows], [r[1] for r in rows], "o-", label=label)
    axis.set(xlabel="clients", ylabel="server CPU, ns for each AoE request", xscale="log")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(directory / "cpu.png", dpi=120)
    pyplot.close("all")


def main(argv: Sequence[str]) -> int:
    """Draw; exit status 1 if a file holds no storms."""
    parser = argparse.ArgumentParser(
        prog="python -m bench stormreport", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="STORM.json")
    parser.add_argument("--plot", type=Path, required=True, metavar="DIR")
    asked = parser.parse_args(argv)
    runs = []
    for path in asked.files:
        try:
            runs.append(json.loads(path.read_text()))
            if not runs[-1]["storms"]:
                raise ValueError("no storms in it")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"bench stormreport: {path}: {error}", file=sys.stderr)
            return 1
    plot(runs[0], asked.plot, runs[1:])
    return 0
