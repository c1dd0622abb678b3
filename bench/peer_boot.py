"""What the usual pieces need to boot a diskless client: dnsmasq for DHCP and TFTP, vblade for AoE.

    python bench/peer_boot.py [--firmware bios|uefi] [--runs 3] [--json]

Builds the minimal lab image, boots one QEMU client from it in a lab of its own for each run and
prints the seconds from power-on to each stage. /config and the report device are plain files, so
the booted system is the same as with pxed. Needs root, dnsmasq, vblade and tcpdump.
"""

import argparse
import json
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pxed.client.minimal import build_minimal
from pxed.errors import PxedError
from pxed.lab.accel import pick_accel
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client, Firmware

IPXE = Path("/usr/lib/ipxe")
STAGES = (
    "DISCOVER",
    "boot file",
    "iPXE DISCOVER",
    "iPXE ACK",
    "first AoE read",
    "kernel loaded",
    "AoE driver up",
    "root mounted",
    "/config mounted",
    "running",
)


def start_peers(lab: Lab, image: Path) -> None:
    """dnsmasq, and one vblade for each device, in the lab's server namespace."""
    config, report = lab.directory / "config.img", lab.directory / "report.img"
    with config.open("wb") as out:
        out.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(config)], check=True)
    report.write_bytes(b"\0" * 16384)
    devices = {0: image / "boot.img", 1: image / "root.squashfs", 3: config, 4: report}
    for slot, path in devices.items():
        readonly = ["-r"] if slot in (0, 1) else []
        lab.server.popen(["vblade", *readonly, "16", str(slot), "eth0", str(path)])
    with (lab.directory / "dnsmasq.log").open("wb") as log:
        lab.server.popen(
            [
                "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0",
                "--bind-interfaces", "--dhcp-range=10.77.0.50,10.77.0.250,10m", "--log-dhcp",
                f"--dhcp-leasefile={lab.directory}/leases", "--no-ping",
                "--enable-tftp", f"--tftp-root={IPXE}",
                "--dhcp-match=set:ipxe,175", "--dhcp-match=set:efi,option:client-arch,7",
                "--dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe",
                "--dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
                "--dhcp-option=tag:ipxe,17,aoe:e16.0",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip


class Wire:
    """The client's frames on the lab's switch, recorded by tcpdump from start to ``stages``."""

    def __init__(self, lab: Lab) -> None:
        self._file = lab.directory / "wire.pcap"
        words = (lab.directory / "tcpdump.log").open("wb")
        with words:
            self._dump = lab.switch.popen(
                ["tcpdump", "-i", "br0", "-U", "-n", "-w", str(self._file),
                 "udp port 67 or udp port 68 or udp port 69 or ether proto 0x88a2"],
                stderr=words,
            )  # fmt: skip
        until = time.monotonic() + 5
        while b"listening" not in (lab.directory / "tcpdump.log").read_bytes():
            if time.monotonic() > until:
                raise SystemExit("tcpdump does not start")
            time.sleep(0.02)

    def stages(self, client: Client) -> dict[str, float]:
        """Wall-clock time of each stage that the wire shows; ends the recording."""
        time.sleep(0.2)
        self._dump.terminate()
        self._dump.wait()
        own = bytes.fromhex(client.mac.replace(":", ""))
        seen: dict[str, float] = {}
        for when, frame in self._frames():
            if (stage := _stage(frame, own, seen)) is None:
                continue
            if stage == "kernel loaded":  # the last of them counts
                seen[stage] = when
            else:
                seen.setdefault(stage, when)
        return seen

    def _frames(self) -> Iterator[tuple[float, bytes]]:
        data = self._file.read_bytes()
        at = 24
        while at + 16 <= len(data):
            seconds, micros, length, _ = struct.unpack_from("<IIII", data, at)
            yield seconds + micros / 1e6, data[at + 16 : at + 16 + length]
            at += 16 + length


def _stage(frame: bytes, own: bytes, seen: dict[str, float]) -> str | None:
    """The stage that a frame belongs to; ``seen``: the stages so far."""
    mine = frame[6:12] == own
    if frame[12:14] == b"\x88\xa2":
        if not mine:
            return None
        shelf, slot, command = struct.unpack_from(">HBB", frame, 16)
        if command == 1 and shelf == 0xFFFF:
            return "AoE driver up"
        if command == 0 and slot == 0 and "AoE driver up" not in seen:
            return "kernel loaded" if "first AoE read" in seen else "first AoE read"
        return None
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    (port,) = struct.unpack_from(">H", frame, 36)
    if port == 69:
        return "boot file" if mine else None
    if mine and port == 67:
        if b"M\x04iPXE" in frame:  # option 77
            return "iPXE DISCOVER"
        return "DISCOVER"
    # 53: ACK, to iPXE when it has asked before.
    if port == 68 and b"\x35\x01\x05" in frame[282:] and "iPXE DISCOVER" in seen:
        return "iPXE ACK"
    return None


def watch(client: Client, timeout: float) -> dict[str, float]:
    """Wall-clock time of each line that the client's initramfs says, until it runs."""
    names = {"root": "root mounted", "config": "/config mounted", "running": "running"}
    seen: dict[str, float] = {}
    until = time.monotonic() + timeout
    while "running" not in seen:
        for word in re.findall(r"pxed: [0-9.]+ (\w+)", client.console()):
            if word in ("failed", "degraded"):
                raise SystemExit(f"the client did not come up: {client.console()[-300:]}")
            if word in names:
                seen.setdefault(names[word], time.time())
        if time.monotonic() > until:
            raise SystemExit(f"not running after {timeout:g} s: {client.console()[-300:]}")
        time.sleep(0.01)
    return seen


def boot(firmware: Firmware, image: Path) -> dict[str, float]:
    """Boot one client once; the seconds from power-on to each stage, in order."""
    with Lab() as lab:
        start_peers(lab, image)
        wire = Wire(lab)
        client = lab.add_client(firmware=firmware)
        started = time.time()
        client.power_on()
        seen = watch(client, timeout=120)
        seen.update(wire.stages(client))
        return {stage: round(seen[stage] - started, 3) for stage in STAGES if stage in seen}


def main() -> None:
    """Boot as often as asked for, print the medians."""
    parser = argparse.ArgumentParser(description="boot a client with dnsmasq and vblade")
    parser.add_argument("--firmware", choices=("bios", "uefi"), action="append")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="pxed-peer-") as name:
        image = Path(name) / "image"
        build_minimal(image, name="lab", version="1")
        for firmware in asked.firmware or ["bios", "uefi"]:
            runs = [boot(firmware, image) for _ in range(asked.runs)]
            results[firmware] = {
                stage: round(statistics.median(run[stage] for run in runs), 2)
                for stage in STAGES
                if all(stage in run for run in runs)
            }
    if asked.json:
        said = {"accelerator": pick_accel(), "runs": asked.runs, "seconds": results}
        print(json.dumps(said, indent=1))
        return
    for firmware, stages in results.items():
        print(f"{firmware}, dnsmasq + vblade, {pick_accel()}, median of {asked.runs}")
        before = 0.0
        for stage, after in stages.items():
            print(f"  {after:7.2f} s  {after - before:+7.2f}  {stage}")
            before = after


if __name__ == "__main__":
    try:
        main()
    except PxedError as error:
        sys.exit(f"peer_boot: {error}")
