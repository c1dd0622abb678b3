"""One seat from power-on to its login prompt, by pxed and by dnsmasq + vblade, in turns.

The same image, firmware and emulated machine for both, a lab of its own for each boot, and what
came before is not in anybody's way: the image is read once before, so that it is in memory for
both. What counts is a round's ratio; the median of the rounds is shown, with the least and the
most.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.seatwire import LOGIN, MOUNT, STAGES, Wire, watch
from pxed.client.debian import build_debian
from pxed.client.minimal import build_minimal
from pxed.errors import PxedError, UsageError
from pxed.images import load
from pxed.lab.accel import pick_accel
from pxed.lab.lab import Lab
from pxed.lab.qemu import Firmware
from pxed.lab.server import LabServer

WANTED = {LOGIN: 0.70, MOUNT: 0.45}
_IPXE = Path("/usr/lib/ipxe")
_CONFIG_SIZE = 512 << 20
_LIMIT = 400.0  # seconds for one boot
# What any PC since 2012 has, and the lab's machines without KVM have not.
_RDRAND = ("-cpu", "Nehalem,+rdrand")
_PROMPT = r"login: |pxed: [0-9.]+ running "
Boot = dict[str, float]


def start_peers(lab: Lab, image: Path) -> None:
    """dnsmasq, and one vblade for each device, in the lab's server namespace.

    /config and the report device are plain files, so the system is the same as with pxed.
    """
    config, report = lab.directory / "config.img", lab.directory / "report.img"
    with config.open("wb") as out:
        out.truncate(_CONFIG_SIZE)
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
                "--enable-tftp", f"--tftp-root={_IPXE}",
                "--dhcp-match=set:ipxe,175", "--dhcp-match=set:efi,option:client-arch,7",
                "--dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe",
                "--dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
                "--dhcp-option=tag:ipxe,17,aoe:e16.0",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip


def start_ours(lab: Lab, image: Path, boot: str, ipxe: Path | None = None) -> None:
    """``pxed serve``; ``boot`` is the configuration's word, san or kernel, ``ipxe`` [tftp] root."""
    found = load(image)
    place = lab.directory / "state/images" / found.name / found.version
    place.parent.mkdir(parents=True)
    place.symlink_to(image.resolve())
    more = f'[class.x86]\nboot = "{boot}"\n'
    if ipxe is not None:
        more += f'[tftp]\nroot = "{ipxe.resolve()}"\n'
    server = LabServer(lab, lab.directory / "state", more)
    server.start()


def boot_once(
    side: str,
    firmware: Firmware,
    image: Path,
    ipxe: Path | None = None,
    extra: tuple[str, ...] = (),
) -> Boot:
    """One boot in a lab of its own: seconds from power-on to each stage, and ``bytes``."""
    with Lab() as lab:
        if side == "peers":
            start_peers(lab, image)
        else:
            start_ours(lab, image, side, ipxe)
        client = lab.add_client(firmware=firmware, memory=1024, extra=extra)
        wire = Wire(lab, client)
        started = time.time()
        client.power_on()
        seen = watch(client, _PROMPT, _LIMIT)
        count = wire.bytes()
        seen.update(wire.stages())
        found = {stage: round(seen[stage] - started, 3) for stage in STAGES if stage in seen}
        return {**found, "bytes": count}


def summary(rounds: list[dict[str, Boot]], side: str) -> dict[str, Any]:
    """Medians of both sides, and of each round's ratio with its extremes."""
    medians = {
        name: {
            key: round(statistics.median(each[name][key] for each in rounds), 2)
            for key in (*STAGES, "bytes")
            if all(key in each[name] for each in rounds)
        }
        for name in (side, "peers")
    }
    ratios = {}
    for stage in (MOUNT, LOGIN, "bytes"):
        each_round = [each[side][stage] / each["peers"][stage] for each in rounds]
        ratios[stage] = {
            "median": round(statistics.median(each_round), 3),
            "least": round(min(each_round), 3),
            "most": round(max(each_round), 3),
        }
    return {"medians": medians, "ratios": ratios}


def show(firmware: str, side: str, found: dict[str, Any], rounds: int) -> str:
    """A table of both sides' stages, and the ratios."""
    ours, peers = found["medians"][side], found["medians"]["peers"]
    lines = [
        f"{firmware}, {pick_accel()}, median of {rounds}; seconds from power-on",
        f"  {'':16} {f'pxed ({side})':>14} {'dnsmasq+vblade':>14}",
    ]
    for stage in STAGES:
        cells = [f"{each[stage]:14.2f}" if stage in each else " " * 14 for each in (ours, peers)]
        if any(cell.strip() for cell in cells):
            lines.append(f"  {stage:16} {' '.join(cells)}")
    mb = [f"{each['bytes'] / 1e6:14.1f}" for each in (ours, peers)]
    lines.append(f"  {'MB on the wire':16} {' '.join(mb)}")
    for stage, ratio in found["ratios"].items():
        wanted = f", wanted <= {WANTED[stage]:.2f}" if stage in WANTED else ""
        lines.append(
            f"  to {stage}, ours / theirs: {ratio['median']:.2f}"
            f" ({ratio['least']:.2f} to {ratio['most']:.2f}){wanted}"
        )
    return "\n".join(lines)


def build(directory: Path, kind: str) -> Path:
    """The image that both boot, in ``directory``."""
    image = directory / "image"
    if kind == "minimal":
        build_minimal(image, name="lab", version="1")
    else:
        build_debian(image, name="lab", version="1", kernel="linux-image-cloud-amd64")
    return image


def main(argv: list[str]) -> None:
    """Boot as often as asked for, print medians and ratios."""
    parser = argparse.ArgumentParser(prog="bench seat", description=__doc__)
    parser.add_argument("--firmware", choices=("bios", "uefi"), action="append")
    parser.add_argument("--boot", choices=("san", "kernel"), default="san", help="how pxed boots")
    parser.add_argument("--ipxe", type=Path, metavar="DIR", help="iPXE that pxed hands out")
    parser.add_argument("--rdrand", action="store_true", help="both have the instruction RDRAND")
    parser.add_argument("--image", default="debian", help="debian, minimal or an image's directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    results: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="pxed-seat-") as name:
            image = Path(asked.image)
            if asked.image in ("debian", "minimal"):
                image = build(Path(name), asked.image)
            elif not (image / "manifest.json").is_file():
                raise UsageError(f"{image}: no image directory: it has no manifest.json")
            if asked.ipxe is not None and not (asked.ipxe / "snponly.efi").is_file():
                raise UsageError(f"{asked.ipxe}: has no snponly.efi: pxed ipxe fetch --out DIR")
            for path in image.iterdir():
                path.read_bytes()
            extra = _RDRAND if asked.rdrand and pick_accel() != "kvm" else ()
            for firmware in asked.firmware or ["bios", "uefi"]:
                rounds = []
                for number in range(asked.rounds):
                    # Whoever is second finds a warmer machine: so they take turns at that too.
                    order = [asked.boot, "peers"][:: -1 if number % 2 else 1]
                    boots = {
                        side: boot_once(side, firmware, image, asked.ipxe, extra) for side in order
                    }
                    rounds.append(boots)
                    print(".", end="", file=sys.stderr, flush=True)
                print(file=sys.stderr)
                found = summary(rounds, asked.boot)
                results[firmware] = {**found, "rounds": rounds}
                if not asked.json:
                    print(show(firmware, asked.boot, found, asked.rounds), flush=True)
    except PxedError as error:
        sys.exit(f"bench seat: {error}")
    if asked.json:
        print(json.dumps({"accelerator": pick_accel(), "firmware": results}, indent=1))
