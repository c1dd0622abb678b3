"""TFTP, DHCP and HTTP beside dnsmasq, tftpd-hpa and nginx, in one run: rates, medians and ratios.

    python -m bench boot [--rounds 3] [--quick] [--only tftp|dhcp|http|first-frame] [--json]

Each server runs alone in a namespace at the end of a veth cable, the whole ``pxed serve`` among
them, and the same clients ask it: curl, atftp (for windows) and Kea's perfdhcp. The server is
pinned to CPU 0 and the clients to CPU 1, as if they were two machines: left alone, Linux now and
then puts both on one CPU, and the same server is three times as fast in that minute. The rounds go
from server to server, so that a slow minute of this machine hits all of them. The last rows are
QEMU clients that boot from our server (``bench.firstframe``). Needs root, curl, atftp, dnsmasq,
tftpd-hpa, perfdhcp and nginx (packages atftp, dnsmasq-base, tftpd-hpa, kea-admin, nginx).
"""

import argparse
import contextlib
import filecmp
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import boothttp
from bench.firstframe import doubles, first_frame
from pxed.errors import PxedError
from pxed.lab.netns import Namespace, veth
from pxed.lab.qemu import Firmware

SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
POOL = ("10.77.64.1", "10.77.127.254")
SERVERS = ("pxed", "dnsmasq", "tftpd-hpa")
SERVER_CPU = "0"
CLIENT_CPU = 1
PINNED = ("taskset", "-c", str(CLIENT_CPU))
NEEDED = ("curl", "atftp", "dnsmasq", "in.tftpd", "perfdhcp", "nginx", "busybox")


@dataclass(frozen=True)
class Load:
    """``clients`` that load a file of ``size`` bytes each at once."""

    name: str
    clients: int
    blksize: int
    size: int
    window: int = 1


LOADS = (
    Load("1 client, 512", 1, 512, 8 << 20),
    Load("1 client, 1468", 1, 1468, 16 << 20),
    Load("50 clients, 1468", 50, 1468, 2 << 20),
    Load("200 clients, 1468", 200, 1468, 1 << 20),
    Load("1 client, 1468, window 16", 1, 1468, 64 << 20, 16),
)
RATES = (200, 400)  # of these a second, which every server here can do
STEPS = (400, 500, 700, 1000, 1400, 2000, 2800, 4000)
CARRIED = 0.97  # of what was asked for, and a server is not saturated yet


class Bench:
    """A cable with a server's end and a clients' end; a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-boot-"))
        self.srv, self.cli = Namespace("srv"), Namespace("cli")
        veth(self.srv, "eth0", self.cli, "eth0")
        self.srv.ip(f"addr add {SERVER}/16 dev eth0")
        # Every client has its own address, as in a room: a server may limit what one address gets.
        self.addresses = [f"10.77.2.{n}" for n in range(1, 1 + max(x.clients for x in LOADS))]
        self.cli.ip(*(f"addr add {ip}/16 dev eth0" for ip in (CLIENT, *self.addresses)))
        self.files = self.folder / "files"
        self.files.mkdir()
        named = {f"{load.size}": load.size for load in LOADS}
        named |= {load.file: load.size for load in boothttp.LOADS}
        for name, size in named.items():
            (self.files / name).write_bytes(os.urandom(1 << 20) * (size >> 20))

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.srv.close()
        self.cli.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def serving(self, name: str) -> Iterator[None]:
        """One server, until the end of the block."""
        with (self.folder / f"{name}.log").open("wb") as log:
            # In a session of its own, as a service manager starts it: Linux shares CPUs by session.
            process = self.srv.popen(["setsid", *self._argv(name)], stdout=log, stderr=log)
            try:
                self._wait(name, process)
                pin = ["taskset", "-a", "-p", "-c", SERVER_CPU, str(process.pid)]
                subprocess.run(pin, check=True, stdout=subprocess.DEVNULL)
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()

    def _argv(self, name: str) -> list[str]:
        if name in boothttp.SERVERS[1:]:
            return boothttp.argv(name, self.folder, self.files)
        if name == "tftpd-hpa":
            return ["in.tftpd", "-L", "-s", "-a", f"{SERVER}:69", "-u", "root", str(self.files)]
        if name == "dnsmasq":
            (self.folder / "leases").unlink(missing_ok=True)
            return [
                "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root",
                "--interface=eth0", "--no-ping", "--dhcp-authoritative", "--dhcp-lease-max=20000",
                f"--dhcp-range={POOL[0]},{POOL[1]},10m", f"--dhcp-leasefile={self.folder}/leases",
                "--enable-tftp", f"--tftp-root={self.files}", "--tftp-max=1000",
            ]  # fmt: skip
        state = self.folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        image = state / "images/lab/1"
        image.mkdir(parents=True)
        for device in ("boot", "root"):
            (image / device).write_bytes(bytes(8192))
        said = {"name": "lab", "version": "1", "class": "x86"}
        devices = {"boot": "boot", "root": "root"}
        kernel = {load.file: load.file for load in boothttp.LOADS}
        for file in kernel:
            (image / file).hardlink_to(self.files / file)
        manifest = {**said, "devices": devices, "kernel": {**kernel, "cmdline": ""}}
        (image / "manifest.json").write_text(json.dumps(manifest))
        config = self.folder / "pxed.toml"
        config.write_text(
            f'interface = "eth0"\nstate_dir = "{state}"\n[tftp]\nroot = "{self.files}"\n'
            f'[dhcp]\nmode = "all"\nforce = true\nrange = "{POOL[0]}-{POOL[1]}"\n'
        )
        return [sys.executable, "-m", "pxed", "serve", "-c", str(config)]

    def _wait(self, name: str, process: "subprocess.Popen[Any]") -> None:
        """Until it answers a TFTP or an HTTP request."""
        until = time.monotonic() + 20
        with self.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(0.2)
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    said = (self.folder / f"{name}.log").read_text(errors="replace")
                    raise SystemExit(f"{name} does not start: {said[-500:]}")
                if name in boothttp.SERVERS[1:]:
                    if boothttp.answers(self.cli, SERVER):
                        return
                    continue
                with contextlib.suppress(OSError):
                    udp.sendto(b"\0\1nothing\0octet\0", (SERVER, 69))
                    if udp.recv(1024):
                        return

    def load(self, load: Load) -> float:
        """MB/s of all clients together; SystemExit if a file did not come whole."""
        file = f"{load.size}"

        def own(ip: str) -> list[str]:
            return [] if load.window > 1 else ["--interface", ip]

        if load.window > 1:
            argv = ["atftp", "--option", f"blksize {load.blksize}", "--option",
                    f"windowsize {load.window}", "-g", "-r", file, "-l", "/dev/null",
                    SERVER]  # fmt: skip
        else:
            argv = ["curl", "-s", "--tftp-blksize", str(load.blksize), "-o", "/dev/null",
                    "-w", "%{size_download}\n", f"tftp://{SERVER}/{file}"]  # fmt: skip
        with _beside_the_clients():
            began = time.monotonic()
            running = [
                self.cli.popen(
                    [*PINNED, *argv, *own(ip)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                for ip in self.addresses[: load.clients]
            ]
            said = [process.communicate(timeout=300)[0] for process in running]
            took = time.monotonic() - began
        whole = load.window > 1 or all(int(text or 0) == load.size for text in said)
        if not whole or any(process.returncode for process in running):
            raise SystemExit(f"{load.name}: a client did not get its file")
        return load.clients * load.size / took / 1e6

    def compare(self, load: Load) -> None:
        """Once and untimed: what this server sends is the file, byte for byte; or SystemExit."""
        copy, argv = self.folder / "copy", ["curl", "-s", "--tftp-blksize", str(load.blksize)]
        self.cli.run([*argv, "-o", str(copy), f"tftp://{SERVER}/{load.size}"], check=False)
        if not filecmp.cmp(copy, self.files / f"{load.size}", shallow=False):
            raise SystemExit(f"{load.name}: what came is not the file")
        copy.unlink()

    def http(self, load: boothttp.HttpLoad) -> float:
        """MB/s of all clients together, every byte compared."""
        with _beside_the_clients(), tempfile.TemporaryDirectory(dir="/dev/shm") as room:
            return boothttp.load(load, self.cli, SERVER, self.addresses, self.files, Path(room),
                                 PINNED)  # fmt: skip

    def exchanges(self, rate: int, seconds: int) -> dict[str, float]:
        """perfdhcp's four-way exchanges: how many of ``rate`` in a second, delays, losses."""
        done = self.cli.run(
            [*PINNED, "perfdhcp", "-4", "-l", "eth0", "-r", str(rate), "-R", "4000",
             "-p", str(seconds), "-W", "1000000", "-x", "t", "-b", "mac=02:00:00:00:00:00", SERVER],
            check=False, timeout=60,
        )  # fmt: skip
        text = done.stdout
        found = re.search(r"Rate: ([0-9.]+) 4-way", text)
        if found is None:
            raise SystemExit(f"perfdhcp: {(done.stderr or text)[-300:]}")
        offers, acks = (_delays(part) for part in (text.split("***Timestamps")[1:] + [""] * 2)[:2])
        drops = [int(value) for value in re.findall(r"drops: (\d+)", text)]
        return {
            # Its clock includes the second that it waits for the last answers.
            "per_second": float(found[1]) * (seconds + 1) / seconds,
            "OFFER median ms": _quantile(offers, 0.5),
            "OFFER p99 ms": _quantile(offers, 0.99),
            "ACK median ms": _quantile(acks, 0.5),
            "ACK p99 ms": _quantile(acks, 0.99),
            "lost": float(sum(drops)),
        }

    def saturation(self, seconds: int) -> dict[str, float]:
        """The last of STEPS that the server carries, and the delays at that rate."""
        best = {"rate": 0.0, "OFFER p99 ms": 0.0, "ACK p99 ms": 0.0}
        for rate in STEPS:
            got = self.exchanges(rate, seconds)
            if got["per_second"] < CARRIED * rate:
                break
            best = {"rate": float(rate)} | {key: got[key] for key in best if key in got}
        return best

    def avalanche(self, clients: int) -> tuple[float, int]:
        """Seconds until this many machines that all ask at once are bound (20 if not by then), and
        how many addresses were given twice."""
        argv = [*PINNED, "perfdhcp", "-4", "-l", "eth0", "--scenario", "avalanche",
                "-R", str(clients), "-b", "mac=02:00:00:10:00:00", SERVER]  # fmt: skip
        capture = self.folder / "avalanche.pcap"
        capture.unlink(missing_ok=True)
        # perfdhcp's own count takes a repeated answer to one machine for a double.
        dump = self.cli.popen(
            [*PINNED, "tcpdump", "-i", "eth0", "-U", "-s", "400", "-B", "16384",
             "-w", str(capture), "udp", "port", "67"],
        )  # fmt: skip
        try:
            until = time.monotonic() + 10
            while not (capture.exists() and capture.stat().st_size) and time.monotonic() < until:
                time.sleep(0.05)
            done = self.cli.run(argv, check=False, timeout=20)
        except subprocess.TimeoutExpired:
            return 20.0, doubles(capture)
        finally:
            dump.terminate()
            dump.wait(10)
        found = re.search(r"took (\d+):(\d+):([0-9.]+) to provision", done.stdout + done.stderr)
        if found is None:
            raise SystemExit(f"perfdhcp: {(done.stderr or done.stdout)[-300:]}")
        took = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
        return took, doubles(capture)


@contextlib.contextmanager
def _beside_the_clients() -> Iterator[None]:
    """This process on the clients' CPU: starting two hundred takes none of the server's time."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _delays(table: str) -> list[float]:
    """Milliseconds from each message to its answer, of perfdhcp's list of timestamps."""
    found = re.findall(r"sent / received: (\d+)\.(\d+) / (\d+)\.(\d+)", table)
    return [(int(b) - int(a)) * 1e3 + (int(b_us) - int(a_us)) / 1e3 for a, a_us, b, b_us in found]


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else 0.0


def measure(
    rounds: int, loads: Sequence[Load], seconds: int, dhcp: bool
) -> dict[str, dict[str, list[Any]]]:
    """Every figure of every server, round by round."""
    figures: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    with Bench() as bench:
        for turn in range(rounds):
            for name in SERVERS:
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                if name == "tftpd-hpa" and not loads:
                    continue
                with bench.serving(name):
                    for load in loads:
                        if load.window > 1 and name != "pxed":
                            continue  # neither has windowsize (RFC 7440)
                        if turn == 0:
                            bench.compare(load)
                        rate = bench.load(load)
                        figures[f"TFTP MB/s, {load.name}"][name].append(rate)
                        print(f"  {load.name}: {rate:.1f} MB/s", file=sys.stderr)
                    if name == "tftpd-hpa" or not dhcp:
                        continue
                    took, twice = bench.avalanche(1000)
                    figures["DHCP s until 1000 at once are bound"][name].append(took)
                    figures["DHCP addresses given twice then"][name].append(twice)
                    for rate in RATES:
                        got = bench.exchanges(rate, seconds)
                        for key, value in got.items():
                            figures[f"DHCP at {rate}/s, {key}"][name].append(value)
                    for key, value in bench.saturation(seconds).items():
                        figures[f"DHCP, most that it carries: {key}"][name].append(value)
    return figures


def measure_http(rounds: int) -> dict[str, dict[str, list[Any]]]:
    """MB/s of every HTTP server, round by round."""
    figures: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    with Bench() as bench:
        for turn in range(rounds):
            for name in boothttp.SERVERS:
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                with bench.serving(name):
                    for load in boothttp.LOADS:
                        rate = bench.http(load)
                        figures[f"HTTP MB/s, {load.name}"][name].append(rate)
                        print(f"  {load.name}: {rate:.0f} MB/s", file=sys.stderr)
    return figures


def report(figures: dict[str, dict[str, list[Any]]]) -> list[dict[str, Any]]:
    """Medians, and ours against the best peer's (above 1 is more; for TFTP and per_second good)."""
    rows: list[dict[str, Any]] = []
    for what, by_server in figures.items():
        medians = {name: round(statistics.median(v), 3) for name, v in by_server.items()}
        peers = [value for name, value in medians.items() if name != "pxed" and value]
        more = "MB/s" in what or what.endswith(("per_second", "rate"))
        best = max(peers, default=0) if more else min(peers, default=0)
        ratio = round(medians["pxed"] / best, 2) if peers and best else None
        rows.append({"what": what, "medians": medians, "ratio_to_best_peer": ratio,
                     "rounds": dict(by_server)})  # fmt: skip
    singles = [row for row in rows if row["what"].endswith("1 client, 1468")]
    for single, row in ((single, row) for single in singles for row in rows):
        if "window" in row["what"]:  # against what the peers do without one
            best = max(v for name, v in single["medians"].items() if name != "pxed")
            row["ratio_to_best_peer"] = round(row["medians"]["pxed"] / best, 2)
    return rows


def first_frames(rounds: int) -> list[dict[str, Any]]:
    """DISCOVER to first AoE frame of each firmware, median of the boots."""
    rows: list[dict[str, Any]] = []
    both: tuple[Firmware, ...] = ("uefi", "bios")
    for firmware in both:
        print(f"first AoE frame of {firmware}", file=sys.stderr)
        boots = [first_frame(firmware) for _ in range(rounds)]
        for key, what in (
            ("ours", "our own time"),
            ("longest", "our slowest answer"),
            ("wall", "all of it"),
        ):
            values = [round(boot[key], 4) for boot in boots]
            rows.append({
                "what": f"{firmware}: DISCOVER to AoE, {what}, s",
                "medians": {"pxed": statistics.median(values)},
                "ratio_to_best_peer": None, "rounds": {"pxed": values},
            })  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The whole benchmark; exit status 2 if a program is missing."""
    parser = argparse.ArgumentParser(prog="bench boot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short DHCP runs")
    parser.add_argument("--only", choices=("tftp", "dhcp", "http", "first-frame"))
    parser.add_argument("--json", action="store_true", help="every figure, as JSON")
    options = parser.parse_args(argv)
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        print(f"bench boot: needs root and {', '.join(missing) or 'its programs'}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up then too
    rows: list[dict[str, Any]] = []
    try:
        if options.only in (None, "tftp", "dhcp"):
            loads = LOADS if options.only != "dhcp" else ()
            seconds = 2 if options.quick else 5
            rows += report(measure(options.rounds, loads, seconds, options.only != "tftp"))
        if options.only in (None, "http"):
            rows += report(measure_http(options.rounds))
        if options.only in (None, "first-frame"):
            rows += first_frames(1 if options.quick else options.rounds)
    except PxedError as error:
        print(f"bench boot: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"load": os.getloadavg(), "cpus": os.cpu_count(), "rows": rows}, indent=2))
        return 0
    for row in rows:
        cells = ", ".join(f"{name} {value:.4g}" for name, value in row["medians"].items())
        print(f"{row['what']:44} {row['ratio_to_best_peer'] or '-':>6}  {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
