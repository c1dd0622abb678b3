"""What a storm can break over: ``pxed serve``, dnsmasq with vblade or tftpd and NBD, the floor.

Each is started in a namespace with its CPU to itself, says which addresses its clients use, and
can be looked into afterwards.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import native, pattern, stormweb
from bench.servers import CPU
from bench.trace import Trace, by_file, sectors_written
from pxed.control import ControlClient
from pxed.errors import HostError
from pxed.ext4 import make
from pxed.lab.netns import Namespace
from pxed.mac import Mac

SERVER, CLIENTS = "10.77.0.1", "10.77.255.1"
SHELF = 16
RANGE = ("10.77.1.0", "10.77.31.250")
FILES = Path("/usr/lib/ipxe")
CONFIG_SIZE = 512 << 20
KERNEL_FILE = "kernel+initrd"
_PINNED = ["taskset", "-c", str(CPU)]
START_LIMIT = 60.0


class Images:
    """The boot and root images of a trace, and a file system for /config, below ``directory``."""

    def __init__(self, directory: Path, trace: Trace) -> None:
        self.directory = directory
        self.boot, self.root = directory / "boot.img", directory / "root.img"
        self.template = directory / "config.ext4"
        self.floor = directory / "floor.img"
        self.files = directory / "tftp"
        # The last export numbers: no client's.
        pattern.make(self.boot, trace.boot_sectors * 512, 60001)
        pattern.make(self.root, trace.root_sectors * 512, 60002)
        with self.floor.open("wb") as out:
            for path in (self.boot, self.root):
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)
        with self.template.open("wb") as out:
            out.truncate(CONFIG_SIZE)
            make(out.fileno(), "config")
        self.files.mkdir()
        for name in ("undionly.kpxe", "snponly.efi"):
            if (FILES / name).exists():
                shutil.copyfile(FILES / name, self.files / name)
        whole = by_file(trace, KERNEL_FILE)
        size = next((op.count for op in whole.ops if op.blob == KERNEL_FILE.encode()), 0)
        pattern.make(self.files / KERNEL_FILE, -(-size // 512) * 512, 60003)
        self.web = stormweb.web_of(trace)
        stormweb.make(self.web, self.files, FILES, SERVER, SHELF)


def client_mac(number: int) -> str:
    """The MAC of a client, as in storm.c."""
    return f"02:be:00:00:{number >> 8:02x}:{number & 255:02x}"


class Room:
    """A server's processes; subclasses start them. ``stop`` ends them, twice is fine.

    ``words``: what the generator is told beside what is common. ``data``: /config files, by client.
    """

    label = ""
    forks = False
    """Its processes have children that nobody waits for: all that its CPU did counts as its own."""

    def __init__(self, space: Namespace, images: Images, clients: int, directory: Path) -> None:
        self.space, self.images, self.clients = space, images, clients
        self.directory = directory
        self.children: list[subprocess.Popen[Any]] = []
        self.words: dict[str, Any] = {"devices": 27, "config": images.template}
        self.data: list[Path] = []
        self.workers: list[int] = []
        directory.mkdir()

    def start(self) -> None:
        raise NotImplementedError

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on the server's CPU."""
        log = (self.directory / f"{Path(argv[0]).name}.log").open("ab")
        with log:
            child = self.space.popen([*_PINNED, *argv], stdout=log, stderr=log, **options)
        self.children.append(child)
        return child

    def last_words(self) -> str:
        """The ends of its logs."""
        return " ".join(
            log.read_text(errors="replace")[-300:].strip() for log in self.directory.glob("*.log")
        )

    def check_alive(self) -> None:
        """HostError if one of its processes has ended."""
        if any(child.poll() is not None for child in self.children):
            raise HostError(f"{self.label}: a process of it ended: {self.last_words()}")

    def wait_until(self, ready: Any, what: str) -> None:
        until = time.monotonic() + START_LIMIT
        while not ready():
            if time.monotonic() > until or any(c.poll() is not None for c in self.children):
                raise HostError(f"{what} does not start: {self.last_words()}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        return [child.pid for child in self.children] + self.workers

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.label} + nginx" if self.workers else self.label

    def cpu_s(self) -> float:
        """CPU seconds of all its processes by now, of those that they waited for too."""
        total = 0.0
        tick = os.sysconf("SC_CLK_TCK")
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += time.clock_gettime((~pid << 3) | 2)
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[13]) + int(fields[14])) / tick
        return total

    def memory(self) -> int:
        """Bytes that are no page cache: anonymous, and the rings of packet sockets."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += int(status.split("RssAnon:")[1].split()[0]) * 1024
                ring = False
                for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                    if "-" in line.split(" ")[0]:
                        ring = "socket:" in line
                    elif ring and line.startswith("Size:"):
                        total += int(line.split()[1]) * 1024
        return total

    def control_s(self) -> float:
        """CPU seconds of what is not the blocks' server; 0: not known apart."""
        return 0.0

    def drops(self) -> int:
        """Frames that it knows it lost; -1: it does not count."""
        return -1

    def running(self) -> int:
        """Clients that it says run; -1: it does not know."""
        return -1

    def said(self) -> dict[str, Any]:
        """What else it says of itself."""
        return {}

    def check(self, trace: Trace) -> int:
        """How many sectors that clients wrote are not in its files as they were written."""
        written = sorted(sectors_written(trace.ops))
        bad = 0
        for client, path in enumerate(self.data):
            with path.open("rb") as file:
                for lba in written:
                    file.seek(lba * 512)
                    want = pattern.sectors(client, lba, 1, version=1).tobytes()
                    bad += file.read(512) != want
        return bad

    def program(self, trace: Trace) -> Trace:
        """The boot as this server's clients do it."""
        return trace

    def stop(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self.children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def dnsmasq(self, *more: str) -> None:
        """DHCP for everybody, and what to boot as for a room of iPXE clients."""
        self.run(
            [
                "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root",
                "--interface=eth0", "--no-ping", "--dhcp-authoritative", "--dhcp-lease-max=20000",
                f"--dhcp-range={RANGE[0]},{RANGE[1]},10m",
                f"--dhcp-leasefile={self.directory}/leases",
                "--dhcp-match=set:ipxe,175", "--dhcp-boot=tag:!ipxe,undionly.kpxe",
                "--dhcp-option=tag:ipxe,17,aoe:e16.0", *more,
            ]
        )  # fmt: skip
        self.wait_until(lambda: self._listens(67), "dnsmasq")

    def nginx(self) -> None:
        """HTTP beside dnsmasq, if the boot loads anything that way."""
        if not self.images.web:
            return
        self.run(stormweb.nginx(SERVER, self.images.files, self.directory))
        self.wait_until(lambda: self._listens(80, "tcp"), "nginx (is it installed?)")
        master = self.children[-1].pid
        said = Path(f"/proc/{master}/task/{master}/children").read_text()
        self.workers = [int(word) for word in said.split()]

    def _listens(self, port: int, table: str = "udp") -> bool:
        return f":{port:04X} " in self.space.run(["cat", f"/proc/net/{table}"]).stdout

    def private(self) -> list[Path]:
        """A /config for each client, a copy of the template with its holes."""
        folder = self.directory / "config"
        folder.mkdir()
        paths = [folder / f"config-{number}" for number in range(self.clients)]
        for path in paths:
            subprocess.run(
                ["cp", "--sparse=always", "--reflink=auto", str(self.images.template), str(path)],
                check=True,
            )
        return paths


class Pxed(Room):
    """The whole of ``pxed serve``; ``more`` is added to its configuration."""

    label = "pxed"

    def __init__(self, *arguments: Any, durability: str = "durable", more: str = "") -> None:
        super().__init__(*arguments)
        self._durability, self._more = durability, more

    def start(self) -> None:
        state = self.directory / "state"
        name, _, version = (self.images.web.spec or "lab@1").partition("@")
        image = state / "images" / name / version
        image.mkdir(parents=True)
        for name in ("boot.img", "root.img"):
            os.link(getattr(self.images, name.partition(".")[0]), image / name)
        for path in self.images.web.sizes:
            os.link(self.images.files / path[1:], image / Path(path).name)
        (image / "manifest.json").write_text(stormweb.manifest(self.images.web))
        boot = "kernel" if self.images.web else "san"
        config = self.directory / "pxed.toml"
        config.write_text(
            f'interface = "eth0"\nstate_dir = "{state}"\n'
            f'[dhcp]\nrange = "{RANGE[0]}-{RANGE[1]}"\n'
            f"[aoe]\nmax_clients = {max(256, self.clients)}\n"
            f'[class.x86]\nboot = "{boot}"\n'
            f'[midlayer]\ndurability = "{self._durability}"\nkeep_free = "0"\n{self._more}'
        )
        self._control = ControlClient(state / "control.sock", timeout=30)
        self.run([sys.executable, "-m", "pxed", "serve", "-c", str(config)])

        def answers() -> bool:
            with contextlib.suppress(HostError):
                self._control.get("/v1/status")
                return True
            return False

        self.wait_until(answers, "pxed")
        layers = state / "config" / "midlayers"
        self.words["config"] = layers / f".template-{CONFIG_SIZE >> 10}K.ext4"
        macs = [Mac(client_mac(number)) for number in range(self.clients)]
        self.data = [layers / f"{mac.replace(':', '')}.ext4" for mac in macs]

    def said(self) -> dict[str, Any]:
        status: dict[str, Any] = self._control.get("/v1/status")
        return status

    def control_s(self) -> float:
        """CPU seconds of its event loop: DHCP, TFTP, clients' lives, all but the blocks."""
        pid = self.pids()[0]
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
        return 0.0

    def drops(self) -> int:
        return int(self.said()["aoe"]["drops"])

    def running(self) -> int:
        until = time.monotonic() + 30
        while (count := int(self.said()["clients"].get("running", 0))) < self.clients:
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        return count


class Vblade(Room):
    """dnsmasq, and one vblade for each device: a client's /config has an address of its own.

    A socket buffer for 1,024 requests: with Debian's default most of a storm is dropped.
    """

    label = "dnsmasq + vblade"
    CONFIG_SHELF = 32

    def start(self) -> None:
        self.words |= {"config_shelf": self.CONFIG_SHELF, "devices": 0b01011}
        self.data = self.private()
        self.dnsmasq("--enable-tftp", f"--tftp-root={self.images.files}", "--tftp-max=2000")
        self.nginx()
        self._blade(16, 0, self.images.boot, "-r")
        self._blade(16, 1, self.images.root, "-r")
        for number, path in enumerate(self.data):
            shelf, slot = self.CONFIG_SHELF + number // 240, number % 240
            self._blade(shelf, slot, path, "-m", client_mac(number).replace(":", ""))
        wanted = len(self.data) + 2

        def ready() -> bool:
            return self.space.run(["cat", "/proc/net/packet"]).stdout.count("88a2") >= wanted

        self.wait_until(ready, "vblade (is it installed?)")

    def _blade(self, shelf: int, slot: int, path: Path, *more: str) -> None:
        self.run(["vblade", "-b", "1024", *more, str(shelf), str(slot), "eth0", str(path)])


class Nbd(Room):
    """dnsmasq for DHCP, tftpd-hpa for the boot file, kernel and initrd, nbdkit for the rest."""

    label = "dnsmasq + tftpd + NBD"
    PORT = 10809
    forks = True

    def program(self, trace: Trace) -> Trace:
        return by_file(trace, KERNEL_FILE)

    def start(self) -> None:
        self.words |= {"devices": 0b01010, "nbd": self.PORT}
        self.data = self.private()
        folder = self.data[0].parent
        os.link(self.images.root, folder / "root")
        self.dnsmasq()
        self.nginx()
        self.run(["in.tftpd", "-L", "-s", "-a", f"{SERVER}:69", "-u", "root",
                  str(self.images.files)])  # fmt: skip
        self.run(["nbdkit", "-f", "-t", "16", "-p", str(self.PORT), "file", f"dir={folder}"])
        self.wait_until(lambda: self._listens(69), "tftpd-hpa (is it installed?)")
        self.wait_until(
            lambda: self._listens(self.PORT, "tcp") or self._listens(self.PORT, "tcp6"),
            "nbdkit (is it installed?)",
        )


class Floor(Room):
    """The least loop that answers reads: no DHCP, no TFTP, no writes."""

    label = "floor, reads alone"

    def start(self) -> None:
        self.words |= {"mode": "reads", "devices": 0b00011}
        self.run([str(native.program("floor")), f"image={self.images.floor}",
                  "frames=65536", "spin_us=0"])  # fmt: skip

        def ready() -> bool:
            return "88a2" in self.space.run(["cat", "/proc/net/packet"]).stdout

        self.wait_until(ready, "the floor")

    def check(self, trace: Trace) -> int:
        return 0


ROOMS: dict[str, type[Room]] = {"pxed": Pxed, "vblade": Vblade, "nbd": Nbd, "floor": Floor}
NEEDED = {
    "pxed": ("mkfs.ext4",),
    "vblade": ("dnsmasq", "vblade"),
    "nbd": ("dnsmasq", "in.tftpd", "nbdkit"),
    "floor": (),
}
"""Programs without which a room cannot be built."""
WITH_HTTP = {name: (*needed, "nginx") if "dnsmasq" in needed else needed
             for name, needed in NEEDED.items()}  # fmt: skip
"""The same for a boot that loads by HTTP."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
