"""Clients by the hundred and the thousand, for ``bench lives``: new ones at once, known ones."""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from aoe_fast.initiator import Initiator
from bench.livesserver import Room, room
from pxed.dhcp.codec import BROADCAST_FLAG, Message, Op, Opt, Type, encode
from pxed.mac import Mac, mac_bytes
from pxed.midlayers import Midlayers
from pxed.net.packet import udp_frame
from pxed.seat import Client, Stage, State, Step
from pxed.store import Store

Numbers = dict[str, Any]


def mac(number: int) -> Mac:
    return Mac(f"52:54:00:01:{number >> 8:02x}:{number & 0xFF:02x}")


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
