"""What a seat's boot shows on its cable and its console: each stage's moment, and the bytes."""

import json
import re
import struct
import time
from collections.abc import Iterator

from pxed.errors import HostError
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from pxed.mac import mac_bytes

STAGES = (
    "DISCOVER",
    "boot file",
    "iPXE DISCOVER",
    "iPXE ACK",
    "first AoE frame",
    "kernel",
    "AoE driver up",
    "root mounted",
    "/config mounted",
    "login",
)
MOUNT, LOGIN = "root mounted", "login"
_SAID = {"root": MOUNT, "config": "/config mounted"}
# DHCP, TFTP's requests, and of AoE only the queries: the reads are many, and counted by the card.
_FILTER = "udp port 67 or udp port 68 or udp port 69 or (ether proto 0x88a2 and ether[19] = 1)"
_QUERY = 1


class Wire:
    """A client's frames on the lab's switch from now on, until ``stages``."""

    def __init__(self, lab: Lab, client: Client) -> None:
        self._client = client
        self._lab = lab
        self._file = lab.directory / f"{client.name}.pcap"
        words = lab.directory / "tcpdump.log"
        with words.open("wb") as log:
            self._dump = lab.switch.popen(
                ["tcpdump", "-i", "br0", "-U", "-n", "-w", str(self._file), _FILTER], stderr=log
            )
        until = time.monotonic() + 20
        while b"listening" not in words.read_bytes():
            if time.monotonic() > until or self._dump.poll() is not None:
                raise HostError("tcpdump does not start: apt install tcpdump")
            time.sleep(0.02)

    def bytes(self) -> int:
        """Octets of all frames to and from the client so far, as its switch port counts them."""
        said = self._lab.switch.run(["ip", "-s", "-j", "link", "show", self._client.tap])
        counted = json.loads(said.stdout)[0]["stats64"]
        return int(counted["rx"]["bytes"]) + int(counted["tx"]["bytes"])

    def stages(self) -> dict[str, float]:
        """Wall-clock time of the first frame of each stage; ends the recording."""
        time.sleep(0.2)
        self._dump.terminate()
        self._dump.wait()
        own = mac_bytes(self._client.mac)
        seen: dict[str, float] = {}
        for when, frame in frames(self._file.read_bytes()):
            if (stage := stage_of(frame, own, seen)) is not None:
                seen.setdefault(stage, when)
        return seen


def frames(pcap: bytes) -> Iterator[tuple[float, bytes]]:
    """(time, frame) of a pcap file."""
    at = 24
    while at + 16 <= len(pcap):
        seconds, micros, length, _ = struct.unpack_from("<IIII", pcap, at)
        yield seconds + micros / 1e6, pcap[at + 16 : at + 16 + length]
        at += 16 + length


def stage_of(frame: bytes, own: bytes, seen: dict[str, float]) -> str | None:
    """The stage that a frame of the machine ``own`` belongs to; ``seen``: the stages so far.

    What the system itself asks for, once its AoE driver is up, is none.
    """
    if "AoE driver up" in seen:
        return None
    mine = frame[6:12] == own
    if frame[12:14] == b"\x88\xa2":
        if not mine or len(frame) < 20 or frame[19] != _QUERY:
            return None
        return "AoE driver up" if frame[16:18] == b"\xff\xff" else "first AoE frame"
    if frame[12:14] != b"\x08\x00" or len(frame) < 38 or frame[23] != 17:
        return None
    (port,) = struct.unpack_from(">H", frame, 36)
    if port == 69:
        return "boot file" if mine else None
    if mine and port == 67:
        # Option 77 of an iPXE.
        return "iPXE DISCOVER" if b"M\x04iPXE" in frame else "DISCOVER"
    # 53: ACK, to iPXE when it has asked before.
    if port == 68 and b"\x35\x01\x05" in frame[282:] and "iPXE DISCOVER" in seen:
        return "iPXE ACK"
    return None


def watch(client: Client, prompt: str, limit: float) -> dict[str, float]:
    """Wall-clock time of each step that the console shows, until ``prompt`` does.

    HostError if the machine says that it failed or runs degraded, or not in ``limit`` seconds.
    """
    seen: dict[str, float] = {}
    until = time.monotonic() + limit
    while LOGIN not in seen:
        console = client.console()
        now = time.time()
        for uptime, word in re.findall(r"pxed: ([0-9.]+) (\w+)", console):
            if word in ("failed", "degraded"):
                raise HostError(f"the client did not come up: {console[-300:]}")
            if word == "kernel":
                seen.setdefault("kernel", now - float(uptime))
            if word in _SAID:
                seen.setdefault(_SAID[word], now)
        if re.search(prompt, console):
            seen[LOGIN] = now
        if time.monotonic() > until or not client.running:
            raise HostError(f"no login after {limit:g} s: {console[-300:]}")
        time.sleep(0.02)
    return seen
