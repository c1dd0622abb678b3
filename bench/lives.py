"""How client lives scale: a room of DISCOVERs in one second, thousands of known clients, the log.

    python -m bench.lives [storm] [known] [events] [soak] [--clients 200] [--known 5000] [--json]

``storm``: DISCOVERs as one burst against ``pxed serve`` in a network namespace, until the last
midlayer is exported, and one AoE write to each; beside it mkfs.ext4 for each, the usual way.
``known``: restart, ``client list`` and memory with thousands of running clients on the books.
``events``: a million entries through the log into the database.
``soak``: a million events through the whole of a server's client lives; no table may grow.
The server runs in a process of its own with a monitor of its event loop. Needs root.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import uvloop

from aoe_fast import Target
from aoe_fast.initiator import Initiator
from pxed.ask import ControlClient
from pxed.choice import Choice
from pxed.config import parse
from pxed.dhcp.codec import BROADCAST_FLAG, Message, Op, Opt, Type, encode
from pxed.dhcp.replies import Mode as DhcpMode
from pxed.errors import HostError
from pxed.eventlog import EventLog
from pxed.events import Event, Kind
from pxed.journal import Journal
from pxed.keeper import Keeper
from pxed.lab.netns import Namespace, veth
from pxed.lives import Lives
from pxed.mac import Mac, mac_bytes
from pxed.midlayers import Midlayers
from pxed.net.packet import udp_frame
from pxed.netboot import NetBoot
from pxed.seat import Client, Stage, State, Step
from pxed.store import Store
from pxed.watch import Watch
from pxed.why import Scene

Numbers = dict[str, Any]
LAG_STEP = 0.001


def mac(number: int) -> Mac:
    return Mac(f"52:54:00:01:{number >> 8:02x}:{number & 0xFF:02x}")


# The server under test


async def _monitor(worst: list[float]) -> None:
    """How late the event loop is; the worst of each 100 ms."""
    loop = asyncio.get_running_loop()
    while True:
        late, until = 0.0, loop.time() + 0.1
        while loop.time() < until:
            before = loop.time()
            await asyncio.sleep(LAG_STEP)
            late = max(late, loop.time() - before - LAG_STEP)
        worst.append(late)


async def _serve(config_path: str) -> None:
    from pxed.app import App

    worst: list[float] = []
    app = App(parse(Path(config_path).read_text(), config_path))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGUSR1, worst.clear)

    def tell() -> None:
        Path(config_path).with_suffix(".lag").write_text(json.dumps(worst))

    loop.add_signal_handler(signal.SIGUSR2, tell)
    await app.start()
    gc.collect()
    gc.freeze()  # as pxed.app.run does
    monitor = loop.create_task(_monitor(worst))
    await stopping.wait()
    monitor.cancel()
    await app.stop()


def noise(seconds: float = 3.0) -> float:
    """How late the loop of a process that does nothing else is: what this machine's load costs."""
    worst: list[float] = []

    async def idle() -> None:
        monitor = asyncio.get_running_loop().create_task(_monitor(worst))
        await asyncio.sleep(seconds)
        monitor.cancel()

    uvloop.run(idle())
    return max(worst)


class Room:
    """A server in one namespace, a cable, and a place to send from in another."""

    def __init__(self, state: Path, size: str) -> None:
        self.state = state
        self.config = state.parent / "pxed.toml"
        self.config.write_text(
            f'interface = "eth0"\nstate_dir = "{state}"\n[midlayer]\nsize = "{size}"\n'
            '[dhcp]\nrange = "10.77.1.0-10.77.31.250"\n'
        )
        self.control = ControlClient(state / "control.sock", timeout=60)
        self.srv, self.cli = Namespace("srv"), Namespace("cli")
        veth(self.srv, "eth0", self.cli, "eth0")
        self.srv.ip("addr add 10.77.0.1/19 dev eth0")
        self.cli.ip("link set eth0 txqueuelen 4000")
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> float:
        """Seconds from the start of the process to its first answer."""
        began = time.perf_counter()
        self.process = self.srv.popen(
            [sys.executable, "-m", "bench.lives", "--serve", str(self.config)], stderr=None
        )
        while True:
            with contextlib.suppress(HostError):
                self.control.get("/v1/status")
                return time.perf_counter() - began
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.005)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait()
        self.process = None

    def lag(self) -> list[float]:
        """How late the server's loop was since ``forget_lag``, in seconds, for each 100 ms."""
        assert self.process is not None
        told = self.config.with_suffix(".lag")
        told.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        said: list[float] = json.loads(told.read_text())
        return said

    def forget_lag(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)

    def memory(self) -> int:
        """Anonymous memory of the server in bytes: what is not page cache."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024

    def close(self) -> None:
        if self.process is not None:
            self.stop(signal.SIGKILL)
        self.srv.close()
        self.cli.close()


@contextlib.contextmanager
def room(size: str) -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as name:
        state = Path(name) / "state"
        image = state / "images" / "lab" / "1"
        image.mkdir(parents=True)
        for device in ("boot.img", "root.img"):
            (image / device).write_bytes(bytes(1 << 20))
        said = {"name": "lab", "version": "1", "class": "x86",
                "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
        (image / "manifest.json").write_text(json.dumps(said))
        made = Room(state, size)
        try:
            yield made
        finally:
            made.close()


# A room is switched on


def discover(number: int) -> bytes:
    """The frame of a DISCOVER of an iPXE in the card's ROM."""
    options = {
        Opt.TYPE: bytes((Type.DISCOVER,)), Opt.PARAMETERS: bytes((1, 3, 17, 66, 67)),
        Opt.VENDOR_CLASS: b"PXEClient:Arch:00000:UNDI:002001", Opt.ARCH: b"\0\0",
        Opt.USER_CLASS: b"iPXE", Opt.IPXE: b"\x12\x01\x01\x13\x01\x01",
    }  # fmt: skip
    message = Message(
        op=Op.REQUEST, xid=number, chaddr=mac(number), flags=BROADCAST_FLAG,
        options={int(code): value for code, value in options.items()},
    )  # fmt: skip
    ends = (IPv4Address(0), 68), (IPv4Address("255.255.255.255"), 67)
    return udp_frame(mac_bytes(mac(number)), b"\xff" * 6, *ends, encode(message))


def ready(room: Room, since: float) -> dict[str, float]:
    """When each midlayer was ready, by MAC, in seconds since the epoch."""
    lines = room.control.follow(f"/v1/events?since={since}")
    return {e["mac"]: e["time"] for e in lines if e["kind"] == "midlayer-ready"}


def wait_ready(room: Room, since: float, count: int, limit: float = 60) -> dict[str, float]:
    until = time.monotonic() + limit
    time.sleep(0.02 if count == 1 else 2)  # asking costs the server time too
    while len(found := ready(room, since)) < count:
        if time.monotonic() > until:
            raise SystemExit(f"only {len(found)} of {count} midlayers are ready")
        time.sleep(0.02 if count == 1 else 0.5)
    return found


def storm(clients: int, size: str = "512M") -> Numbers:
    with room(size) as here:
        here.start()
        with here.cli.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            alone = []
            for number in range(4000, 4020):
                sent = time.time()
                raw.send(discover(number))
                alone.append(wait_ready(here, sent - 0.001, 1)[mac(number)] - sent)
                time.sleep(0.2)
            here.forget_lag()
            frames = [discover(number) for number in range(clients)]
            began = time.time()
            for frame in frames:
                raw.send(frame)
            sent = time.time() - began
        time.sleep(2)
        lag = here.lag()
        found = wait_ready(here, began - 0.001, clients)
        last = max(found.values()) - began
        with here.cli.inside():
            wrote = time.perf_counter()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(write, range(clients)))
            writes = time.perf_counter() - wrote
        status = here.control.get("/v1/status")
        if status["aoe"]["drops"]:
            raise SystemExit("frames were dropped")
        return {
            "clients": clients,
            "midlayer": size,
            "burst_s": round(sent, 3),
            "all_exported_s": round(last, 3),
            "each_alone_median_ms": round(statistics.median(alone) * 1e3, 2),
            "each_alone_max_ms": round(max(alone) * 1e3, 2),
            "loop_late_max_ms": round(max(lag) * 1e3, 2),
            "one_write_each_s": round(writes, 3),
        }


def write(number: int) -> None:
    """One durable write to this client's /config."""
    with Initiator("eth0", source_mac=mac_bytes(mac(number)), timeout=5) as initiator:
        initiator.write(16, 3, 1000, bytes(1024))


def mkfs(clients: int, threads: int, size: int = 512 << 20) -> float:
    """Seconds to make a file system for each with mkfs.ext4, each synced, by so many threads."""

    def make(number: int) -> None:
        path = Path(directory) / f"{number}.ext4"
        with path.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", str(path)], check=True)
        with path.open("rb+") as file:
            os.fdatasync(file.fileno())

    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as directory:
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(make, range(clients)))
        return time.perf_counter() - began


def clones(clients: int, threads: int, size: int = 512 << 20) -> float:
    """Seconds to make a midlayer for each our way and nothing else, each synced."""
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as directory:
        layers = Midlayers(Path(directory), size)
        layers.open()
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda number: layers.prepare(mac(number)), range(clients)))
        return time.perf_counter() - began


# Thousands are known


def fill(state: Path, count: int) -> None:
    """Clients that run, with midlayers, as a server leaves them behind."""
    layers = Midlayers(state / "config" / "midlayers", 8 << 20)
    layers.open()
    now = time.time()
    timeline = [Step(stage, now - 20 + stage, "detail of it") for stage in Stage]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: layers.prepare(mac(n)), range(count)))
    with Store(state / "pxed.db") as store:
        store.save_clients(
            Client(
                mac(n), State.RUNNING, name=f"seat-{n:04d}", firmware="pxe", arch=7,
                ip="10.77.1.1", image="lab@1", boots=3, boot_started=now - 20, last_seen=now,
                groups=[f"room-{n // 40}"], timeline=list(timeline), mode="diskless",
            )
            for n in range(count)
        )  # fmt: skip


def known(count: int) -> Numbers:
    with room("8M") as here:
        fill(here.state, count)
        bare = _seconds(
            lambda: subprocess.run([sys.executable, "-c", "import pxed.app"], check=True)
        )
        starts = []
        for _ in range(3):
            starts.append(here.start())
            if len(starts) < 3:
                here.stop(signal.SIGKILL)
        here.forget_lag()
        time.sleep(3)
        idle = max(here.lag())
        cpu = _cpu(here)
        time.sleep(3)
        cpu = (_cpu(here) - cpu) / 3
        here.forget_lag()
        answer = _seconds(lambda: here.control.get("/v1/clients"))
        command = [sys.executable, "-m", "pxed", "client", "list", "--state-dir", str(here.state)]
        lists = [_seconds(lambda: subprocess.run(command, check=True, capture_output=True))
                 for _ in range(5)]  # fmt: skip
        python = _seconds(lambda: subprocess.run([*command[:3], "--version"], capture_output=True))
        time.sleep(0.2)
        listing = max(here.lag())
        here.forget_lag()
        with here.cli.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            began = time.time()
            for number in range(count, count + 50):
                raw.send(discover(number))
        time.sleep(1)
        late = max(here.lag())
        new = max(wait_ready(here, began - 0.001, 50).values()) - began
        return {
            "known": count,
            "restart_s": round(statistics.median(starts), 3),
            "of_that_imports_s": round(bare, 3),
            "client_list_cli_s": round(statistics.median(lists), 3),
            "of_that_python_s": round(python, 3),
            "client_list_answer_s": round(answer, 3),
            "memory_mib": round(here.memory() / (1 << 20), 1),
            "idle_cpu_percent": round(cpu * 100, 1),
            "loop_late_idle_ms": round(idle * 1e3, 2),
            "loop_late_listing_ms": round(listing * 1e3, 2),
            "50_new_ones_s": round(new, 3),
            "loop_late_50_new_ms": round(late * 1e3, 2),
        }


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cpu(room: Room) -> float:
    assert room.process is not None
    fields = Path(f"/proc/{room.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The log


def events(count: int = 1_000_000, keep: int = 100_000) -> Numbers:
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as name:
        path = Path(name) / "pxed.db"
        log = EventLog()
        began = time.perf_counter()
        worst = 0.0
        with Store(path) as store:
            for number in range(count):
                log.add({"time": 1e9 + number, "kind": "stage", "mac": mac(number & 0xFFF),
                         "stage": "root mounted", "after": 2.5, "detail": "lab@1"})  # fmt: skip
                if number % 500 == 499:
                    before = time.perf_counter()
                    store.save_events(log.unsaved(500), keep)
                    worst = max(worst, time.perf_counter() - before)
                if number % 20_000 == 19_999:
                    store.checkpoint()
            took = time.perf_counter() - began
            kept = len(list(store.events()))
            store.checkpoint()
        size = sum(each.stat().st_size for each in Path(name).iterdir())
        return {
            "events": count,
            "kept": kept,
            "seconds": round(took, 1),
            "file_mib": round(size / (1 << 20), 1),
            "worst_batch_of_500_ms": round(worst * 1e3, 1),
        }


class _Quiet:
    """The boot protocols, of which a soak needs none."""

    def heard(self, _event: Event) -> None:
        pass

    def settled(self, _mac: Mac) -> None:
        pass

    def scene(self) -> Scene:
        return Scene(DhcpMode.PXE_ONLY, None, True, 80, "/usr/lib/ipxe")


def soak(count: int = 1_000_000, clients: int = 300) -> Numbers:
    """So many events through the whole of a server's lives: a room that boots again and again."""
    with tempfile.TemporaryDirectory(prefix="pxed-bench-", dir="/var/tmp") as name:
        return uvloop.run(_soak(count, clients, Path(name)))


async def _soak(count: int, clients: int, directory: Path) -> Numbers:
    choice, log = Choice(parse('interface = "eth0"')), EventLog()
    room = [mac(number) for number in range(clients)]
    boot: list[tuple[Kind, dict[str, object]]] = [
        (Kind.DISCOVER, {"firmware": "pxe", "arch": 7}),
        (Kind.OFFER, {"ip": "10.77.1.1", "boot_file": "snponly.efi", "root_path": ""}),
        (Kind.REQUEST, {"firmware": "pxe", "arch": 7, "ip": "10.77.1.1"}),
        (Kind.ACK, {"ip": "10.77.1.1", "boot_file": "snponly.efi", "root_path": ""}),
        (Kind.TFTP_DONE, {"ip": "10.77.1.1", "file": "snponly.efi", "bytes": 1, "seconds": 0.1}),
        (Kind.DISCOVER, {"firmware": "ipxe", "arch": 7}),
        (Kind.AOE_FOUND, {"shelf": 16, "slot": 0}),
        (Kind.AOE_READ, {"shelf": 16, "slot": 0}),
        (Kind.REPORT, {"step": "root", "uptime": 2.0, "text": "lab@1"}),
        (Kind.REPORT, {"step": "running", "uptime": 3.0, "text": "lab@1"}),
    ]
    with Store(directory / "pxed.db") as store:
        journal = Journal(directory / "leases.journal")
        keeper = Keeper(store, choice.clients, log, 10_000, lambda _text: None, journal)
        watch = Watch(Target(), lambda _mac: directory / "none")
        lives = Lives(choice, log, keeper, watch, lambda *_: None, lambda _client: None)
        lives.netboot = cast(NetBoot, _Quiet())
        marks: list[int] = []
        sent, now = 0, time.time() - 10 * count
        while sent < count:
            for kind, detail in boot:
                now += 1
                for each in room:
                    lives.emit(Event(kind, each, now, detail))
                sent += len(room)
                await asyncio.sleep(0)
            now += 600
            lives.tick(now)
            await keeper.checkpoint()
            marks.append(_anonymous())
        keeper.close()
        rows = len(list(store.events()))
        store.checkpoint()
    quarter = len(marks) // 4
    return {
        "events": sent,
        "memory_at_a_quarter_mib": round(max(marks[: quarter + 1]) / (1 << 20), 1),
        "memory_at_the_end_mib": round(marks[-1] / (1 << 20), 1),
        "event_rows": rows,
        "files_mib": round(sum(p.stat().st_size for p in directory.iterdir()) / (1 << 20), 1),
        "clients": len(choice.clients),
    }


def _anonymous() -> int:
    """This process's own memory in bytes, without the page cache."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lives")
    parser.add_argument("parts", nargs="*", choices=["storm", "known", "events", "soak", []])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--known", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve(options.serve))
        return
    parts = options.parts or ["storm", "known", "events", "soak"]
    found: Numbers = {"machine": {"idle_loop_late_ms": round(noise() * 1e3, 2),
                                  "load": os.getloadavg()[0]}}  # fmt: skip
    if "storm" in parts:
        found["storm"] = storm(options.clients)
        found["storm"]["clone_each_1_thread_s"] = round(clones(options.clients, 1), 2)
        found["storm"]["clone_each_4_threads_s"] = round(clones(options.clients, 4), 2)
        found["storm"]["mkfs_each_1_thread_s"] = round(mkfs(options.clients, 1), 2)
        found["storm"]["mkfs_each_4_threads_s"] = round(mkfs(options.clients, 4), 2)
    if "known" in parts:
        found["known"] = known(options.known)
    if "events" in parts:
        found["events"] = events()
    if "soak" in parts:
        found["soak"] = soak()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for part, numbers in found.items():
        print(part)
        for name, value in numbers.items():
            print(f"  {name:24} {value}")


if __name__ == "__main__":
    main()
