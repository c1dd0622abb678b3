"""Makes the seed corpus from real traffic: a BIOS PC boots in the lab, each kind of frame is kept.

``python -m tests.fuzz.capture [--peers]``; needs root, and QEMU but for ``--peers``. Frames of one
protocol that differ only in numbers (tags, addresses, times) are one kind; of each kind the
first is kept.
"""

import hashlib
import shlex
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

from bench.overload import Room
from pxed.client.minimal import build_minimal
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.lab.server import LabServer

Kept = dict[str, dict[bytes, bytes]]
"""By protocol: of each kind, the first that was seen."""

CORPUS = Path(__file__).parent / "corpus"
_PORTS = {67: "dhcp", 68: "dhcp", 4011: "dhcp", 69: "tftp"}
_MOST = 400  # bytes of a payload that say what kind it is
_KEEP = 64


def kind(name: str, data: bytes) -> bytes:
    """What makes ``data`` a kind of its own in its protocol."""
    if name == "aoe":
        command, flags = data[19], data[14]
        opcode = data[27:28] if command == 0 else data[29:30]
        return bytes([flags, command, data[18]]) + opcode + data[26:27]
    if name == "dhcp":
        return data[240:_MOST]
    return data[:2] + (data if data[:2] in (b"\0\1", b"\0\6") else b"")


def kept_of(frame: bytes) -> tuple[str, bytes] | None:
    """The protocol, and what is kept of a frame."""
    ethertype = struct.unpack_from(">H", frame, 12)[0]
    if ethertype == 0x88A2:
        return "aoe", frame
    if ethertype != 0x0800 or frame[23] != 17:
        return None
    at = 14 + (frame[14] & 15) * 4
    source, target = struct.unpack_from(">HH", frame, at)
    name = _PORTS.get(target) or _PORTS.get(source) or "tftp"
    return name, frame[at + 8 :]


class Tap:
    """Listens on eth0 of a namespace, from ``with`` to its end."""

    def __init__(self, inside: Namespace, kept: Kept) -> None:
        self._kept = kept
        with inside.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("eth0", 3))
        self._socket.settimeout(0.5)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self._enough.is_set():
            try:
                frame = self._socket.recv(10000)
            except TimeoutError:
                continue
            if (found := kept_of(frame)) is not None:
                name, data = found
                if len(self._kept[name]) < _KEEP:
                    self._kept[name].setdefault(kind(name, data), data)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self._socket.close()


def peers(kept: Kept) -> None:
    """udhcpc, curl, atftp and aoetools against the server."""
    with Room() as room, Tap(room.srv, kept):
        room.lease()
        commands = (
            "udhcpc -i eth0 -n -q -f -t 2 -T 1 -s /bin/true",
            "udhcpc -i eth0 -n -q -f -t 2 -T 1 -s /bin/true -V HTTPClient:Arch:00016:UNDI:003016",
            "curl -sf -o /dev/null tftp://10.77.0.1/undionly.kpxe",
            "curl -sf -o /dev/null tftp://10.77.0.1/nothing",
            "atftp -g -r undionly.kpxe -l /dev/null --option blksize\\ 1400 10.77.0.1",
            "atftp -g -r undionly.kpxe -l /dev/null --option windowsize\\ 8 10.77.0.1",
            "aoeping -I -s 2 16 0 eth0", "aoeping -i -s 1 16 3 eth0",
            "aoecfg -t 1 -c read 16 0 eth0", "aoecfg -t 1 -c set -s words 16 0 eth0",
            "aoecfg -t 1 -c test -s words 16 0 eth0", "aoecfg -t 1 -c ptest -s wor 16 3 eth0",
            "aoecfg -t 1 -c fset -s other 16 0 eth0",
        )  # fmt: skip
        for command in commands:
            room.cli.run(shlex.split(command), check=False, timeout=20)


def boot(kept: Kept) -> None:
    """A BIOS PC: PXE, iPXE, and Linux's aoe driver."""
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        build_minimal(state / "images" / "lab" / "1", name="lab", version="1")
        server = LabServer(lab, state)
        server.start()
        with Tap(lab.server, kept):
            client = lab.add_client()
            client.power_on()
            server.wait_running(client, 200)
        server.stop()


def main(words: list[str]) -> int:
    kept: Kept = {"aoe": {}, "dhcp": {}, "tftp": {}}
    peers(kept)
    if "--peers" not in words:
        boot(kept)
    for name, frames in kept.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        known = {kind(name, path.read_bytes()) for path in folder.glob("seen-*")}
        fresh = [data for what, data in frames.items() if what not in known]
        for data in fresh:
            (folder / f"seen-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
        print(f"{name}: {len(frames)} kinds, {len(fresh)} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
