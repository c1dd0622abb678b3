"""From a firmware's first DISCOVER to its first AoE frame: the whole wait, and our part of it.

A QEMU client of each firmware boots in the virtual lab from ``pxed serve``; tcpdump stands on the
server's card. Our own time is the sum of the gaps that end with a frame of ours: from the frame
before it, whoever sent that, to the answer. Everything else is the firmware's.
"""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pxed.lab.lab import Lab
from pxed.lab.qemu import Firmware
from pxed.mac import mac_bytes

_AOE = b"\x88\xa2"
_IPV4 = b"\x08\x00"
_ACK = bytes((53, 1, 5))
_BROADCAST = b"\xff" * 6


def first_frame(firmware: Firmware, *, limit: float = 120) -> dict[str, float]:
    """Seconds ``wall`` and ``ours`` of one boot; RuntimeError if no AoE frame comes in time."""
    with Lab() as lab:
        config = lab.directory / "pxed.toml"
        state = lab.directory / "state"
        _image(state / "images/lab/1")
        config.write_text(f'interface = "eth0"\nstate_dir = "{state}"\n[aoe]\nspin_us = 0\n')
        capture = lab.directory / "first.pcap"
        serve = [sys.executable, "-m", "pxed", "serve", "-c", str(config)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = lab.server.popen(serve, **quiet)
        dump = lab.server.popen(
            ["tcpdump", "-i", "eth0", "-U", "-s", "400", "-B", "16384", "-w", str(capture)], **quiet
        )
        try:
            _until(lambda: (state / "control.sock").exists() and capture.exists(), 30)
            client = lab.add_client(firmware=firmware)
            client.power_on()
            own = mac_bytes(client.mac)
            _until(lambda: _first_aoe(capture, own), limit)
        finally:
            for process in (dump, server):
                process.terminate()
                process.wait(10)
        return _measured(capture, own)


def _image(folder: Path) -> None:
    """Devices of zeroes: the first frame asks for them, and no more is looked at."""
    folder.mkdir(parents=True)
    for device in ("boot", "root"):
        (folder / device).write_bytes(bytes(8192))
    said = {"name": "lab", "version": "1", "class": "x86"}
    devices = {"boot": "boot", "root": "root"}
    (folder / "manifest.json").write_text(json.dumps({**said, "devices": devices}))


def _until(what: object, seconds: float) -> None:
    assert callable(what)
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing within {seconds:g} s")
        time.sleep(0.05)


def _frames(capture: Path) -> Iterator[tuple[float, bytes]]:
    """(time, frame) of a pcap file, as far as it is written."""
    data = capture.read_bytes()
    at = 24
    while at + 16 <= len(data):
        seconds, micro, size, _ = struct.unpack_from("=IIII", data, at)
        if at + 16 + size > len(data):
            return
        yield seconds + micro / 1e6, data[at + 16 : at + 16 + size]
        at += 16 + size


def _first_aoe(capture: Path, own: bytes) -> bool:
    return any(frame[6:12] == own and frame[12:14] == _AOE for _, frame in _frames(capture))


def _is_discover(frame: bytes, own: bytes) -> bool:
    return frame[6:12] == own and frame[12:14] == _IPV4 and frame[36:38] == b"\x00\x43"


def _answers(frame: bytes, own: bytes) -> bool:
    """To this machine, or a DHCP reply that is broadcast for it."""
    if frame[0:6] == own:
        return True
    from_dhcp = frame[12:14] == _IPV4 and frame[34:36] == b"\x00\x43"
    return frame[0:6] == _BROADCAST and from_dhcp and frame[70:76] == own


def _measured(capture: Path, own: bytes) -> dict[str, float]:
    """``wall`` and ``ours`` between the first DISCOVER and the first AoE frame."""
    began = last = ours = 0.0
    longest = 0.0
    for when, frame in _frames(capture):
        if frame[6:12] == own:
            if began and frame[12:14] == _AOE:
                return {"wall": when - began, "ours": ours, "longest": longest}
            if not began and _is_discover(frame, own):
                began = when
            last = when
        elif began and _answers(frame, own):
            longest = max(longest, when - last)
            ours += when - last
            last = when
    raise RuntimeError("no DISCOVER before the first AoE frame")


def doubles(capture: Path) -> int:
    """How many addresses the DHCPACKs of a capture give to more than one machine."""
    owners: dict[bytes, set[bytes]] = {}
    for _, frame in _frames(capture):
        # To a relay or a client, from port 67; option 53 comes first after the magic cookie.
        if frame[12:14] == _IPV4 and frame[34:36] == b"\x00\x43" and frame[282:285] == _ACK:
            owners.setdefault(frame[58:62], set()).add(frame[70:76])
    if not owners:
        raise RuntimeError("no DHCPACK was captured")
    return sum(len(machines) > 1 for machines in owners.values())
