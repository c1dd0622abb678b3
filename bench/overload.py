"""What a flood of each kind does to a seat that runs: its latency before, during and after.

A server of its own, in namespaces of its own; each flood is bounded in packets and in time.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from pxed.ask import ControlClient
from pxed.lab.netns import Namespace, veth
from pxed.mac import mac_bytes
from pxed.net.packet import udp_frame

SEAT = "02:00:00:00:00:11"
PACKETS = 100_000
SECONDS = 6.0
SERVER = IPv4Address("10.77.0.1")
_COOKIE = bytes.fromhex("63825363")
_PXE = bytes([60, 32]) + b"PXEClient:Arch:00000:UNDI:002001" + bytes([93, 2, 0, 0])
_VARIANTS = 4000

Frames = Callable[[random.Random], bytes]


def _stranger(chance: random.Random) -> bytes:
    return bytes([0x02, 0xEE]) + chance.randbytes(4)


def _udp(chance: random.Random, port: int, payload: bytes, mac: bytes | None = None) -> bytes:
    mac = mac or _stranger(chance)
    source = (IPv4Address(0x0A4D0000 + chance.randrange(2, 0xFE)), chance.randrange(1024, 65535))
    if port == 67:
        source = (IPv4Address(0), 68)
    target = IPv4Address("255.255.255.255") if port == 67 else SERVER
    return udp_frame(mac, b"\xff" * 6, source, (target, port), payload)


def _discover(chance: random.Random) -> bytes:
    mac = _stranger(chance)
    head = bytes([1, 1, 6, 0]) + chance.randbytes(4) + bytes([0, 0, 0x80, 0]) + bytes(16) + mac
    return _udp(chance, 67, head + bytes(202) + _COOKIE + bytes([53, 1, 1]) + _PXE + b"\xff", mac)


def _aoe(chance: random.Random, command: int, body: bytes) -> bytes:
    head = struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, 0xFFFF, 0xFF, command, chance.getrandbits(32))
    return b"\xff" * 6 + _stranger(chance) + head + body


FLOODS: dict[str, Frames] = {
    "dhcp-rubbish": lambda c: _udp(c, 67, c.randbytes(c.randrange(300, 600))),
    "dhcp-macs": _discover,
    "tftp-rubbish": lambda c: _udp(c, 69, c.randbytes(c.randrange(1, 500))),
    "tftp-half-open": lambda c: _udp(c, 69, b"\0\1undionly.kpxe\0octet\0blksize\x001456\0"),
    "boot-port": lambda c: _udp(c, 4011, c.randbytes(300)),
    "aoe-rubbish": lambda c: b"\xff" * 6 + _stranger(c) + b"\x88\xa2" + c.randbytes(100),
    "aoe-discover": lambda c: _aoe(c, 1, bytes(8)),
    "aoe-reads": lambda c: _aoe(c, 0, struct.pack(">BBBB", 0x40, 0, 2, 0x24) + bytes(8)),
}


def filter_for(raw: socket.socket, mac: bytes) -> None:
    """Only frames to ``mac``: the answers to a flood must not fill this socket."""
    high, low = struct.unpack(">IH", mac)
    code = [(0x20, 0, 0, 0), (0x15, 0, 3, high), (0x28, 0, 0, 4), (0x15, 0, 1, low),
            (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]  # fmt: skip
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    attached = struct.pack("HP", len(code), ctypes.addressof(program))
    raw.setsockopt(socket.SOL_SOCKET, 26, attached)  # SO_ATTACH_FILTER


@contextlib.contextmanager
def _before_all_others() -> Iterator[None]:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):  # without CAP_SYS_NICE it waits like all others
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)


class Room:
    """A server with one image, the seat's namespace, and one for who floods; a context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Room":
        stack = self._stack
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pxed-flood-")))
        self.state = folder / "state"
        image = self.state / "images" / "lab" / "1"
        image.mkdir(parents=True)
        (image / "boot.img").write_bytes(b"boot" * 262144)
        (image / "root.img").write_bytes(b"root" * 262144)
        manifest = {"name": "lab", "version": "1", "class": "x86",
                    "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
        (image / "manifest.json").write_text(json.dumps(manifest))
        self.srv = stack.enter_context(Namespace("srv"))
        self.cli = stack.enter_context(Namespace("cli"))
        veth(self.srv, "eth0", self.cli, "eth0")
        self.srv.ip("addr add 10.77.0.1/24 dev eth0")
        self.cli.ip("addr add 10.77.0.2/24 dev eth0")
        config = folder / "pxed.toml"
        config.write_text(
            f'interface = "eth0"\nstate_dir = "{self.state}"\n[midlayer]\nkeep_free = "0"\n'
            f'[client."{SEAT}"]\nname = "seat"\n'
        )
        self.process = self.srv.popen(
            [sys.executable, "-m", "pxed", "serve", "-c", str(config)], stderr=subprocess.DEVNULL
        )
        self.control = ControlClient(self.state / "control.sock")
        try:
            self.until_serving()
            self.become_known()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until_serving(self) -> None:
        """Return when the server that was started answers; RuntimeError if it does not."""
        end = time.monotonic() + 60
        while not (self.state / "control.sock").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server did not start")
            time.sleep(0.02)

    def become_known(self) -> None:
        """Lease, as the firmware of the seat; its own devices are there when this returns."""
        self.cli.ip("link set eth0 down", f"link set eth0 address {SEAT}", "link set eth0 up")
        end = time.monotonic() + 120
        while not self.lease():
            if time.monotonic() > end:
                raise RuntimeError("the seat was given no address")
        while "midlayer-ready" not in {e["kind"] for e in self.control.follow("/v1/events")}:
            if time.monotonic() > end:
                raise RuntimeError("the seat was given no devices")
            time.sleep(0.02)

    def lease(self) -> bool:
        """Whether the seat is given an address, within a few tries."""
        done = self.cli.run(
            ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "30", "-T", "1", "-s", "/bin/true",
             "-V", "PXEClient:Arch:00000:UNDI:002001"], check=False,
        )  # fmt: skip
        return done.returncode == 0

    def fetches(self) -> bool:
        """Whether the boot file comes by TFTP."""
        done = self.cli.run(
            ["curl", "-sf", "-m", "60", "-o", "/dev/null", "tftp://10.77.0.1/undionly.kpxe"],
            check=False,
        )
        return done.returncode == 0

    def memory_kb(self) -> int:
        """The server's resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0])

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def ask_for(self, seconds: float, patience: float = 1.0) -> list[float]:
        """The latency in us of reads of the seat's /config, one at a time; inf for no answer.

        One at least. What is not answered within a second is asked again, as Linux does, until
        ``patience`` is over. A seat is another machine: it does not wait here for a CPU that flood
        and server have.
        """
        took = []
        with (
            _before_all_others(), self.cli.inside(),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as seat,
        ):  # fmt: skip
            filter_for(seat, mac_bytes(SEAT))
            seat.bind(("eth0", 0x88A2))
            seat.settimeout(1.0)
            end, tag, server = time.monotonic() + seconds, 0, b"\xff" * 6
            while tag == 0 or time.monotonic() < end:
                tag += 1
                head = struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, 16, 3, 0, tag)
                read = struct.pack(">BBBB", 0x40, 0, 2, 0x24) + bytes(8)
                began, raw = time.perf_counter(), b""
                while not raw and time.perf_counter() - began < patience:
                    seat.send(server + mac_bytes(SEAT) + head + read)
                    raw = self._answer(seat, tag, time.perf_counter())
                took.append((time.perf_counter() - began) * 1e6 if raw else float("inf"))
                server = raw[6:12] or server
        return took

    @staticmethod
    def _answer(seat: socket.socket, tag: int, began: float) -> bytes:
        while time.perf_counter() - began < 1:
            try:
                raw = seat.recv(2000)
            except TimeoutError:
                break
            if raw[20:24] == tag.to_bytes(4, "big") and raw[14] & 8:
                return raw
        return b""

    @contextlib.contextmanager
    def flood(self, kind: str, packets: int = PACKETS) -> Iterator["multiprocessing.Process"]:
        """One flood, from a process of its own, until it has sent all or its time is up."""
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_send, args=(self, kind, packets), daemon=True)
        process.start()
        try:
            yield process  # type: ignore[misc]
        finally:
            process.join(SECONDS + 5)
            if process.is_alive():
                process.kill()
                process.join()


def _send(room: Room, kind: str, packets: int) -> None:
    chance = random.Random(kind)
    frames = [FLOODS[kind](chance) for _ in range(min(packets, _VARIANTS))]
    with room.cli.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("eth0", 0))
        end = time.monotonic() + SECONDS
        for number in range(packets):
            frame = bytearray(frames[number % len(frames)])
            frame[8:12] = chance.getrandbits(32).to_bytes(4, "big")  # 100,000 addresses, not 4000
            if kind == "dhcp-macs":
                frame[14 + 28 + 28 : 14 + 28 + 34] = frame[6:12]
                frame[40:42] = b"\0\0"  # no checksum
            with contextlib.suppress(OSError):
                out.send(frame)
            if number % 64 == 0 and time.monotonic() > end:
                return


def p99(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]


def measure(room: Room, kind: str, seconds: float = 3.0) -> dict[str, float | str]:
    """One row: p99 before, during and after, their ratio, memory, and whether all came back."""
    before, memory = room.ask_for(seconds), room.memory_kb()
    with room.flood(kind):
        during = room.ask_for(seconds)
    time.sleep(1)
    after = room.ask_for(seconds)
    return {
        "flood": kind, "before": p99(before), "during": p99(during), "after": p99(after),
        "ratio": p99(during) / p99(before), "lost": sum(t == float("inf") for t in during),
        "memory_mb": (room.memory_kb() - memory) / 1024,
        "lease": float(room.lease()), "file": float(room.fetches()),
    }  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench overload", description=__doc__)
    parser.add_argument("--only", choices=FLOODS, action="append")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    rows = []
    with Room() as room:
        for kind in given.only or FLOODS:
            row = measure(room, kind, given.seconds)
            rows.append(row)
            if not given.json:
                print(f"{kind:15} p99 before {row['before']:6.0f} us, during {row['during']:6.0f}, "
                      f"after {row['after']:6.0f}: x{row['ratio']:.1f}; {row['lost']} lost, "
                      f"memory {row['memory_mb']:+.1f} MiB")  # fmt: skip
    if given.json:
        print(json.dumps(rows, indent=2))
    return 0
