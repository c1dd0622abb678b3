"""A room boots at once: N clients from DISCOVER to running, against pxed and what is used instead.

    python -m bench storm --clients 200 [--link 1G] [--scale 1,10,50,100] [--json F] [--plot DIR]

One C program plays all clients (native/storm.c), replaying a trace of a recorded boot. Each server
has a CPU to itself, the clients another; a veth cable, or a switch with a token bucket in either
direction, is between them.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import native, stormreport, trace
from bench.report import machine
from bench.servers import CPU, GENERATOR_CPU, alone, ksoftirqd
from bench.stormservers import (
    CLIENTS,
    NEEDED,
    ROOMS,
    SERVER,
    SIGNALS,
    WITH_HTTP,
    Images,
    Room,
)  # fmt: skip
from bench.trace import Trace
from pxed.ask import LOOK_UP
from pxed.config import parse_size
from pxed.errors import HostError, PxedError
from pxed.host import raise_file_limit
from pxed.lab.netns import Namespace, veth

SERVER_MAC = "02:77:00:00:00:01"
TRACE = Path(__file__).parent / "traces" / "minimal.trace"
_PREFIX = "pxed-storm-"
_BURST = 256 << 10  # bytes that a shaped link may send at once
_QUEUE = 256 << 20  # bytes that the switch holds: every client's window, so that it drops nothing

Figures = dict[str, Any]


class Cable:
    """Two namespaces, ``server`` and ``clients``, joined directly or by a switch of ``rate`` bit/s.

    The token buckets are in the switch: what our server and the floor send goes past the queueing
    discipline of their own interface.
    """

    def __init__(self, rate: int = 0, mtu: int = 1500) -> None:
        self.rate = rate
        self._spaces: list[Namespace] = []
        try:
            self.server, self.clients = self._space("server"), self._space("clients")
            if rate:
                self._switched(self._space("switch"))
            else:
                veth(self.server, "eth0", self.clients, "eth0")
            for space in self._spaces:
                space.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], check=False)
            self.server.ip(f"link set eth0 address {SERVER_MAC}", f"addr add {SERVER}/16 dev eth0")
            # For those clients that speak TCP: that is the kernel's.
            self.clients.ip(f"addr add {CLIENTS}/16 dev eth0")
            for space in (self.server, self.clients):
                space.ip(f"link set eth0 mtu {mtu} txqueuelen 10000")
            if rate:
                self._spaces[2].ip(*(f"link set {port} mtu {mtu}" for port in ("s", "c", "br0")))
        except BaseException:
            self.close()
            raise

    def _space(self, name: str) -> Namespace:
        self._spaces.append(Namespace(name))
        return self._spaces[-1]

    def _switched(self, switch: Namespace) -> None:
        switch.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                  "link set br0 up")  # fmt: skip
        for port, space in (("s", self.server), ("c", self.clients)):
            veth(switch, port, space, "eth0")
            switch.ip(f"link set {port} master br0")
            done = switch.run(
                ["tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", f"{self.rate}bit",
                 "burst", str(_BURST), "limit", str(_QUEUE)], check=False,
            )  # fmt: skip
            if done.returncode:
                raise HostError(f"no token bucket in this kernel: {done.stderr.strip()}")

    def dropped(self) -> int:
        """Frames that the switch dropped."""
        if not self.rate:
            return 0
        said = json.loads(self._spaces[2].run(["tc", "-s", "-j", "qdisc", "show"]).stdout)
        return sum(each.get("drops", 0) for each in said)

    def close(self) -> None:
        """End everything in it; closing twice is fine."""
        for space in self._spaces:
            space.close()


def measure(room: Room, cable: Cable, boot: Trace, words: dict[str, Any], limit: float) -> Figures:
    """Start the server, let the storm loose, look at what is left of it."""
    replay = room.program(boot)
    file = room.directory / "program"
    file.write_bytes(trace.program(replay))
    room.start()
    pids = ksoftirqd()
    before, soft, busy, control = room.cpu_s(), _soft(pids), _cpu_times(), room.control_s()
    argv = ["taskset", "-c", str(GENERATOR_CPU), str(native.program("storm"))]
    told = {
        "program": file, "clients": room.clients, "target": SERVER_MAC, "server": SERVER,
        "files": room.images.files, "boot": room.images.boot, "root": room.images.root,
        "limit": limit, **words, **room.words,
    }  # fmt: skip
    argv += [f"{key}={value}" for key, value in told.items()]
    child = cable.clients.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, complaint = _ends(child, limit + 60)
    if child.returncode != 0:
        raise HostError(f"the generator failed: {complaint.decode().strip()}")
    found: Figures = json.loads(out)
    room.check_alive()
    found["server_cpu_s"] = room.cpu_s() - before + _soft(pids) - soft
    found["control_s"] = room.control_s() - control
    found["cpu_times"] = {name: now - busy[name] for name, now in _cpu_times().items()}
    if room.forks:
        found["server_cpu_s"] = found["cpu_times"]["busy"]
    found["memory"] = room.memory()
    found["drops"] = room.drops()
    found["switch_drops"] = cable.dropped()
    found["server_running"] = room.running()
    found["bad_sectors"] = room.check(boot) if found["running"] == room.clients else 0
    found["said"], found["label"] = room.said(), room.title
    requests = boot.frames((words["mtu"] - 36) // 512) * room.clients
    return stormreport.derive(found, requests, cable.rate)


def _ends(child: "subprocess.Popen[bytes]", limit: float) -> tuple[bytes, bytes]:
    """What it said until its end; TimeoutExpired. Of a Ctrl-C Python learns between two waits."""
    until = time.monotonic() + limit
    while True:
        try:
            return child.communicate(timeout=min(LOOK_UP, max(until - time.monotonic(), 0.001)))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= until:
                raise


def _soft(pids: Sequence[int]) -> float:
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def _cpu_times() -> dict[str, float]:
    """Seconds that the server's CPU was busy, idle, and taken away by the host, since its start."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{CPU}":
            seconds = [int(tick) / os.sysconf("SC_CLK_TCK") for tick in ticks]
            busy = sum(seconds[:3]) + sum(seconds[5:7])
            return {"busy": busy, "idle": seconds[3] + seconds[4], "stolen": seconds[7]}
    return {"busy": 0.0, "idle": 0.0, "stolen": 0.0}


@contextlib.contextmanager
def directory(where: Path | None) -> Iterator[Path]:
    """A directory that goes with this process; what a killed one left is removed first."""
    base = where or Path("/var/tmp")
    for stale in base.glob(f"{_PREFIX}*"):
        pid = stale.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=base) as name:
        yield Path(name)


def storm(
    name: str, clients: int, boot: Trace, images: Images, asked: argparse.Namespace
) -> Figures:
    """One server, one storm, nothing left of either."""
    home = images.directory / f"{name}-{clients}"
    cable = Cable(asked.rate, asked.mtu)
    try:
        more = {"durability": asked.durability} if name == "pxed" else {}
        room = ROOMS[name](cable.server, images, clients, home, **more)
        try:
            words = {"think": asked.think, "spread": asked.spread, "mtu": asked.mtu}
            return measure(room, cable, boot, words, asked.limit)
        finally:
            room.stop()
    finally:
        cable.close()
        shutil.rmtree(home, ignore_errors=True)


def parse_rate(text: str) -> int:
    """Bits a second of "1G" or "100M"; 0 for "none"."""
    if text == "none":
        return 0
    try:
        rate = parse_size(text)
    except ValueError:
        rate = 0
    units = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
    if rate <= 0 or text[-1] not in units or not text[:-1].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: write a rate such as 1G, 10G or none")
    return int(text[:-1]) * units[text[-1]]


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= 4000 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers of clients, 1 to 4000: 1,10,100")
    return counts


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench storm", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--clients", type=_counts, default=[200], metavar="N[,N...]",
                        help="how many boot at once; several: a scaling curve")  # fmt: skip
    parser.add_argument("--server", action="append", choices=list(ROOMS),
                        help="repeatable; default: all whose programs are there")  # fmt: skip
    parser.add_argument("--trace", type=Path, default=TRACE, help="made by python -m bench record")
    parser.add_argument("--share", type=float, default=1.0, help="of what the trace reads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--link", type=parse_rate, default=0, dest="rate", metavar="RATE",
                        help="1G, 10G or none (default)")  # fmt: skip
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--think", type=float, default=0.0, metavar="FACTOR",
                        help="of the recorded client's own time; default 0: none")  # fmt: skip
    parser.add_argument("--spread", type=float, default=0.0, metavar="SECONDS",
                        help="over which the clients are switched on; default 0")  # fmt: skip
    parser.add_argument("--durability", choices=("durable", "writeback"), default="durable")
    parser.add_argument("--limit", type=float, default=120, metavar="SECONDS",
                        help="after which a storm is ended")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw them (needs matplotlib)")
    parser.add_argument("--dir", type=Path, help="where images and /config are: on the disk to use")
    return parser


def chosen(asked: argparse.Namespace, boot: Trace) -> list[str]:
    """The servers to run; HostError if one that was asked for cannot."""
    names = asked.server or list(ROOMS)
    needed = WITH_HTTP if boot.total(trace.Kind.HTTP) else NEEDED
    found = []
    for name in names:
        missing = [program for program in needed[name] if shutil.which(program) is None]
        if missing and asked.server:
            raise HostError(f"{name}: {missing[0]} is missing: install it")
        if missing:
            print(f"storm: without {name}: {missing[0]} is missing", file=sys.stderr)
        else:
            found.append(name)
    return found


def main(argv: Sequence[str]) -> int:
    """Every server, every number of clients, every round; exit status 1 if something was wrong."""
    parser = options()
    asked = parser.parse_args(argv)
    if not 0 < asked.share <= 1 or asked.rounds < 1 or not 1500 <= asked.mtu <= 9000:
        parser.error("--share: above 0, at most 1; --rounds: at least 1; --mtu: 1500 to 9000")
    if why := alone():
        print(f"bench storm: {why}", file=sys.stderr)
        return 1

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, stop)
    raise_file_limit()  # a client of NBD has two connections
    try:
        boot = trace.shorten(trace.load(asked.trace), asked.share)
        results = run(boot, chosen(asked, boot), asked)
    except (PxedError, subprocess.SubprocessError, OSError) as error:
        print(f"bench storm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench storm: ended", file=sys.stderr)
        return 130
    if asked.plot:
        stormreport.plot(results, asked.plot)
    return 0 if stormreport.sound(results) else 1


def run(boot: Trace, names: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    """All storms; prints each as it ends, and writes the JSON whatever happens."""
    results: dict[str, Any] = {
        "machine": machine(), "versions": stormreport.versions(), "trace": str(asked.trace.name),
        "about": boot.about, "frames": boot.frames((asked.mtu - 36) // 512), "rate": asked.rate,
        "mtu": asked.mtu, "think": asked.think, "spread": asked.spread, "share": asked.share,
        "durability": asked.durability, "storms": [],
    }  # fmt: skip
    stormreport.show_head(results, boot)
    try:
        with directory(asked.dir) as home:
            images = Images(home, boot)
            for turn in range(asked.rounds):
                for clients in asked.clients:
                    for name in names:
                        found = storm(name, clients, boot, images, asked)
                        found |= {"server": name, "round": turn}
                        results["storms"].append(found)
                        stormreport.show(found)
    finally:
        results["load_after"] = os.getloadavg()[0]
        if asked.json:
            asked.json.write_text(json.dumps(results, indent=1) + "\n")
    stormreport.show_ratios(results)
    return results
