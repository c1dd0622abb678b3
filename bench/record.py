"""Record one real boot in QEMU as a trace: DHCP, TFTP, HTTP and AoE, their order, the think time.

    python -m bench record OUT [--image minimal|debian|DIRECTORY] [--firmware bios|uefi]

The client boots from ``pxed serve`` in a lab of its own; tcpdump watches its cable. Needs root,
QEMU and tcpdump. Think times are those of the machine that was recorded: an emulated one is many
times slower than a real one, and the trace says which it was.
"""

import argparse
import contextlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.boottrace import Reader
from bench.report import machine
from bench.trace import Kind, Trace, encode
from pxed import images
from pxed.client.debian import build_debian
from pxed.client.minimal import build_minimal
from pxed.errors import HostError, PxedError
from pxed.lab.accel import pick_accel
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware
from pxed.lab.server import LabServer

_SNAP = 1100  # bytes of each frame: headers, and lines for the report device
_END = b"the end of what is recorded"


class Tap:
    """tcpdump on the lab's switch, from start to ``close``."""

    def __init__(self, lab: Lab, client: Client) -> None:
        self._lab = lab
        self._file = lab.directory / "wire.pcap"
        log = lab.directory / "tcpdump.log"
        with log.open("wb") as words:
            self._dump = lab.switch.popen(
                ["tcpdump", "-i", client.tap, "-U", "-n", "-s", str(_SNAP), "-B", "65536",
                 "-w", str(self._file), "ether proto 0x88a2 or ip"],
                stderr=words,
            )  # fmt: skip
        self._log = log
        until = time.monotonic() + 60
        while b"listening" not in log.read_bytes():
            if self._dump.poll() is not None or time.monotonic() > until:
                raise HostError(f"tcpdump does not start: {log.read_text().strip()}")
            time.sleep(0.02)

    def close(self) -> None:
        """End the recording; HostError if frames were lost in it."""
        # It gets frames in blocks, and when it is its turn: all are there when this one is.
        with self._lab.server.inside():
            last = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with last:
            last.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            until = time.monotonic() + 60
            while not self._ends():
                if time.monotonic() > until:
                    raise HostError("tcpdump does not write what it hears")
                last.sendto(_END, ("10.77.0.255", 9))
                time.sleep(0.2)
        self._dump.terminate()
        self._dump.wait()
        said = self._log.read_text()
        if "\n0 packets dropped by kernel" not in said:
            raise HostError(f"tcpdump lost frames, the trace would lack some: {said.strip()[-80:]}")

    def _ends(self) -> bool:
        with self._file.open("rb") as file:
            file.seek(max(0, self._file.stat().st_size - (1 << 20)))
            return _END in file.read()

    def frames(self) -> Iterator[tuple[float, bytes]]:
        """Time and bytes of every frame."""
        with self._file.open("rb") as file:
            file.seek(24)
            while len(head := file.read(16)) == 16:
                seconds, micros, length, _ = struct.unpack("<IIII", head)
                yield seconds + micros / 1e6, file.read(length)


def read(tap: Tap, mac: str, image: images.Image, **about: Any) -> Trace:
    """The trace in what was recorded."""
    sizes = [image.devices[name].stat().st_size // 512 for name in ("boot", "root")]
    reader = Reader(bytes.fromhex(mac.replace(":", "")), sizes[0], sizes[1])
    for when, frame in tap.frames():
        reader.frame(when, frame)
    return reader.trace(repeated=reader.repeated, **about)


def record(
    source: str, firmware: Firmware, packages: Sequence[str], timeout: float, more: str = ""
) -> Trace:
    """Boot one client of image ``source`` (minimal, debian or a directory) and record it."""
    with Lab() as lab:
        state = lab.directory / "state"
        target = state / "images" / "lab" / "1"
        _say(f"image {source}")
        if source == "minimal":
            build_minimal(target, name="lab", version="1", progress=_say)
        elif source == "debian":
            build_debian(target, name="lab", version="1", packages=packages, progress=_say)
        else:
            images.load(Path(source))
            shutil.copytree(source, state / "images" / "lab" / Path(source).name)
        image = images.find(state / "images", None, "x86")
        server = LabServer(lab, state, more)
        server.start()
        client = lab.add_client(firmware=firmware)
        tap = Tap(lab, client)
        _say(f"a {firmware} client boots ({pick_accel()})")
        client.power_on()
        _wait_running(server, client.mac, timeout)
        tap.close()
        took = time.monotonic() - client.powered_at
        return read(
            tap, client.mac, image, source=Path(source).name, firmware=firmware,
            accelerator=pick_accel(), seconds=round(took, 1), machine=machine(),
        )  # fmt: skip


def _wait_running(server: LabServer, mac: str, timeout: float) -> None:
    until = time.monotonic() + timeout
    state = ""
    while state != "running":
        if time.monotonic() > until:
            raise HostError(f"the client is not running after {timeout:g} s, but {state}")
        time.sleep(0.2)
        with contextlib.suppress(PxedError):  # not seen yet
            shown = server.client(mac)
            state = shown["state"]
            if state == "failed":
                raise SystemExit(f"bench record: the client failed: {shown['why']}")


def _say(text: str) -> None:
    print(f"record: {text}", file=sys.stderr)


def summary(trace: Trace) -> str:
    """What a trace holds, for people."""
    lines = [f"{len(trace.ops)} operations of one boot; it thought for {trace.thought():.1f} s"]
    for kind in Kind:
        of_kind = [op for op in trace.ops if op.kind is kind]
        if of_kind and kind is not Kind.RUNNING:
            amount = sum(op.count for op in of_kind)
            unit = "bytes" if kind in (Kind.TFTP, Kind.HTTP) else "sectors"
            lines.append(f"  {kind.name:8} {len(of_kind):6}  {amount:9} {unit}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Record, write, say what it holds; exit status 1 if the client did not come to run."""
    parser = argparse.ArgumentParser(prog="python -m bench record", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the trace file to write")
    parser.add_argument("--image", default="minimal", help="minimal, debian, or an image directory")
    parser.add_argument("--package", action="append", default=[], help="for debian; repeatable")
    parser.add_argument("--firmware", choices=("bios", "uefi"), default="bios")
    parser.add_argument("--timeout", type=float, default=400, metavar="SECONDS")
    parser.add_argument("--boot", choices=("san", "kernel"), default="san",
                        help="kernel: kernel and initrd by HTTP")  # fmt: skip
    parser.add_argument("--ipxe", choices=("own", "any"), default="own",
                        help="any: a card's own iPXE goes straight on")  # fmt: skip
    asked = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up then too
    more = f'[class.x86]\nboot = "{asked.boot}"\nipxe = "{asked.ipxe}"\n'
    try:
        found = record(asked.image, asked.firmware, asked.package, asked.timeout, more)
        data = encode(found)
        with tempfile.NamedTemporaryFile(dir=asked.out.parent, delete=False) as new:
            new.write(data)
        Path(new.name).chmod(0o644)
        Path(new.name).rename(asked.out)
    except (PxedError, subprocess.SubprocessError, OSError) as error:
        print(f"bench record: {error}", file=sys.stderr)
        return 1
    print(f"{asked.out}: {len(data)} bytes, {summary(found)}")
    return 0
