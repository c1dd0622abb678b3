"""``pxed serve`` in a namespace, with a monitor of its event loop: what ``bench lives`` measures.

``python -m bench.livesserver CONFIG`` is the server. SIGUSR1: forget how late the loop was;
SIGUSR2: write it beside the configuration.
"""

import asyncio
import contextlib
import gc
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from pxed.ask import ControlClient
from pxed.config import parse
from pxed.errors import HostError
from pxed.host import raise_file_limit
from pxed.lab.netns import Namespace, veth

LAG_STEP = 0.001


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
    raise_file_limit()
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
            [sys.executable, "-m", "bench.livesserver", str(self.config)], stderr=None
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


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
