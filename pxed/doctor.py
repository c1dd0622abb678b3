"""``pxed doctor``: what stands in the way of the first client, and what to do about it.

Looks at the machine, the segment and the configuration; where a server runs, sends a simulated
client of each firmware through it (``pxed.probe``).
"""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from aoe_fast import AoeError
from aoe_fast.frames import ANY_SLOT, InitiatorError
from aoe_fast.initiator import Initiator
from aoe_fast.server import ring_sizes
from pxed import disk, images, ipxe, pi
from pxed.ask import ControlClient, NoServer
from pxed.cli_base import (
    config_option,
    json_option,
    load_config,
    said,
    server,
    show_json,
    state_option,
)
from pxed.config import Config, with_state_dir
from pxed.dhcp.lease import ends
from pxed.errors import PxedError, UsageError
from pxed.table import amount, fold

OK, WARN, BROKEN = "ok", "warn", "BROKEN"
_MARGIN = " " * 8
_FDS_PER_CLIENT = 3  # /config is durable and has two, the report device one
_MAPS_PER_CLIENT = 2
_EXPECTED_CLIENTS = 200
_MAPS = Path("/proc/sys/vm/max_map_count")
_NET = Path("/sys/class/net")
_AOE_WAIT = 0.3
_CLOCK_SLACK = 3600.0  # seconds
_BOOT_FILES = {"undionly.kpxe": "BIOS PCs", "snponly.efi": "UEFI PCs"}

# As Debian and upstream build it: 1.0.0+git-20190125.36a4c85-5.1, 1.21.1+ (g3ad2).
_IPXE_VERSION = re.compile(rb"\0(\d+\.\d+\.\d+\+[!-~]*)\0")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``todo``: what to do about it."""

    about: str
    grade: str
    text: str
    todo: str = ""


@click.command()
@config_option
@click.option("-i", "--interface", help="Network interface to serve; wins over the file's.")
@state_option
@json_option
@said
def doctor(
    config_path: Path | None, interface: str | None, state_dir: Path | None, as_json: bool
) -> None:
    """Look for what would keep clients from booting. Exit status 1 if something is broken."""
    asked = server(state_dir, config_path)
    silent = None
    try:
        status = asked.get("/v1/status")
    except PxedError as error:
        status, silent = None, None if isinstance(error, NoServer) else str(error)
    if interface is None and status is not None:
        interface = status["interface"]
    config = load_config(config_path, interface)
    if state_dir is not None:
        config = with_state_dir(config, state_dir)
    found: list[Finding] = []
    for finding in _all(config, asked if status is not None else None, silent):
        found.append(finding)
        if not as_json:
            _say(finding)
    if as_json:
        show_json([asdict(finding) for finding in found])
    if any(finding.grade == BROKEN for finding in found):
        sys.exit(1)


def _say(finding: Finding) -> None:
    lines = fold(f"{finding.grade:7} {finding.about}: {finding.text}", below=_MARGIN)
    lines += fold(f"{_MARGIN}-> {finding.todo}", below=f"{_MARGIN}   ") if finding.todo else []
    click.echo("\n".join(lines))


def _all(config: Config, running: ControlClient | None, silent: str | None) -> Iterator[Finding]:
    """``silent``: why a server that may run was not asked."""
    checks: list[Callable[[Config], Iterator[Finding]]] = [
        check_privileges, check_interface, check_range, check_path, check_boot_files,
        check_images, check_disk, check_limits, check_clock, check_rivals,
    ]  # fmt: skip
    if running is None and silent is None:  # who runs has the ports, and would not hear itself
        checks += [check_ports, check_targets]
    said = set[str]()
    for check in checks:
        try:
            yield from check(config)
        except PermissionError:
            continue  # said already
        except PxedError as error:
            if str(error) in said:  # the same interface that is not there
                continue
            said.add(str(error))
            about = check.__name__.removeprefix("check_")
            yield Finding(about, BROKEN, str(error), "put that right first")
    if silent is not None:
        yield Finding("server", BROKEN, silent, "then ask again")
        return
    if running is None:
        yield Finding(
            "server", WARN, "no pxed runs here", "start it with pxed serve, then ask again"
        )
        return
    yield Finding("server", OK, "it runs and answers")
    yield from check_running(running, config)
    firmwares = ["bios", "uefi", "http", "ipxe"] if "x86" in config.classes else []
    firmwares += ["rpi"] if "rpi" in config.classes else []
    for firmware in firmwares:
        try:
            yield simulated(running, firmware)
        except PxedError as error:
            todo = "see the server's log"
            yield Finding(f"{firmware} client", BROKEN, str(error), todo)


def check_privileges(_config: Config) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("privileges", OK, "root")
    else:
        yield Finding("privileges", BROKEN, "not root", "run it with sudo")


def check_interface(config: Config) -> Iterator[Finding]:
    from pxed.net.link import look_up
    from pxed.net.wireless import refuse_wireless

    link = look_up(config.interface)
    about = f"interface {link.name}"
    try:
        if warning := refuse_wireless(link):
            yield Finding(about, WARN, warning, "serve a wired interface")
    except UsageError as error:
        yield Finding(about, BROKEN, str(error), "serve a wired interface")
    if link.deaf:
        why, _, todo = link.deaf.rpartition(": ")
        yield Finding(about, BROKEN, why, todo)
    if not link.up:
        yield Finding(about, BROKEN, "is down", f"ip link set {link.name} up")
    elif not link.carrier:
        yield Finding(about, BROKEN, "has no carrier", "plug the cable in, switch the switch on")
    else:
        yield Finding(about, OK, f"{link.mac}, up, has a carrier")
    if link.addresses:
        yield Finding("address", OK, ", ".join(str(each) for each in link.addresses))
    else:
        todo = f"ip addr add ADDRESS/24 dev {link.name}, or start its DHCP client"
        yield Finding("address", BROKEN, f"{link.name} has no IPv4 address", todo)
    if link.mtu < 1500:
        todo = f"ip link set {link.name} mtu 1500"
        yield Finding("MTU", WARN, f"{link.mtu}: fewer sectors fit a frame", todo)
    else:
        large = "; every switch and client on the way must take it too" if link.mtu > 1500 else ""
        sectors = min((link.mtu - 36) // 512, 255)
        yield Finding("MTU", OK, f"{link.mtu}: {sectors} sectors in a frame{large}")


def check_range(config: Config) -> Iterator[Finding]:
    """Whether there are addresses to lease on this interface, and for how many."""
    from pxed.net.link import look_up

    link = look_up(config.interface)
    if config.dhcp.mode == "proxy" or not link.addresses:
        return
    ours, router = link.address(), config.dhcp.router
    taken = {ours.ip} | ({router} if router is not None else set())
    try:
        first, last = ends(config.dhcp.range, ours.network, taken, link.name)
    except UsageError as error:
        todo = f"choose one of {ours.network}, or leave [dhcp] range out"
        yield Finding("range", BROKEN, str(error), todo)
        return
    count = int(last) - int(first) + 1 - sum(1 for ip in taken if first <= ip <= last)
    yield Finding("range", OK, f"{first}-{last}: addresses for {count} machines")


def check_path(config: Config) -> Iterator[Finding]:
    """The devices below a bridge, a bond or a VLAN: the smallest MTU of all is what counts."""
    here = _NET / config.interface
    try:
        mtu = int((here / "mtu").read_text())
        below = [each.name.removeprefix("lower_") for each in here.glob("lower_*")]
        others = {name: int((_NET / name / "mtu").read_text()) for name in sorted(below)}
    except (OSError, ValueError):
        return
    for name, its in others.items():
        if its < mtu:
            text = f"{name} below {config.interface} has {its}, and {config.interface} {mtu}"
            yield Finding("MTU of the path", BROKEN, text, f"ip link set {name} mtu {mtu}")
    if others and min(others.values()) >= mtu:
        yield Finding("MTU of the path", OK, f"{', '.join(others)}: no less than {mtu}")


def check_ports(config: Config) -> Iterator[Finding]:
    """Who has the ports that the server needs, while it does not run."""
    for port, kind, whom in (
        (67, socket.SOCK_DGRAM, "DHCP"), (69, socket.SOCK_DGRAM, "TFTP"),
        (4011, socket.SOCK_DGRAM, "ProxyDHCP"), (config.http.port, socket.SOCK_STREAM, "HTTP"),
    ):  # fmt: skip
        name = f"{port}/{'udp' if kind == socket.SOCK_DGRAM else 'tcp'}"
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
                probe.bind(("", port))
            except PermissionError:
                return  # said already
            except OSError:
                todo = f"ss -lnp 'sport = :{port}' names the program: stop it, or bind it elsewhere"
                yield Finding("ports", BROKEN, f"{name} ({whom}) is in use", todo)
                continue
        yield Finding("ports", OK, f"{name} ({whom}) is free")


def check_targets(config: Config) -> Iterator[Finding]:
    """Other AoE targets at the addresses that are to be ours."""
    for name, each in config.classes.items():
        try:
            with Initiator(config.interface) as initiator:
                found = initiator.discover(each.shelf, ANY_SLOT, wait=_AOE_WAIT)
        except (InitiatorError, OSError):
            return  # said already: no privilege, or no link
        for device in found:
            yield Finding(
                "AoE targets", BROKEN, f"e{device.address} is served by {device.mac.hex(':')} too",
                f"stop it, or choose another [class.{name}] shelf",
            )  # fmt: skip
        if not found:
            yield Finding("AoE targets", OK, f"nobody else has shelf {each.shelf}")


def check_running(running: ControlClient, config: Config) -> Iterator[Finding]:
    """What a running server knows of its segment and its clients."""
    status = running.get("/v1/status")
    for each in status["conflicts"]:
        grade = BROKEN if each["serious"] else WARN
        where = each["ip"] or each["rival"]
        yield Finding("conflict", grade, f"{where} offers {each['offer']}", each["consequence"])
    known, most = sum(status["clients"].values()), config.aoe.max_clients
    if known > most:
        yield Finding("ring", WARN, f"{known} clients are known, and the ring is for {most}",
                      f"set [aoe] max_clients = {known}")  # fmt: skip
    if drops := status["aoe"]["drops"]:
        yield Finding("frames", WARN, f"{drops} AoE frames were dropped since the start",
                      "raise [aoe] max_clients; look for a busy processor")  # fmt: skip


def check_boot_files(config: Config) -> Iterator[Finding]:
    root = ipxe.directory(config)
    fetched = ipxe.manifest(root)
    for name, whom in _BOOT_FILES.items():
        path = root / name
        try:
            data = path.read_bytes()
        except OSError as error:
            todo = "install Debian's package ipxe, or set [tftp] root"
            yield Finding("boot file", BROKEN, f"{path}: {error.strerror}: {whom} need it", todo)
            continue
        if name in fetched and ipxe.digest(data) != fetched[name]:
            text = f"{path} is not what was fetched"
            yield Finding("boot file", BROKEN, text, "fetch it again: pxed ipxe fetch")
            continue
        version = f"iPXE {fetched['version']}" if name in fetched else _ipxe_version(data)
        slow = name.endswith(".efi") and ipxe.waits_for_key(data)
        wait = "; each start waits 2 s for a key" if slow else ""
        todo = "pxed ipxe fetch brings one that does not (docs/operators.md, iPXE)" if slow else ""
        text = f"{path}: {version}, {amount(len(data))}, for {whom}{wait}"
        yield Finding("boot file", OK, text, todo)


def _ipxe_version(data: bytes) -> str:
    """The version in an iPXE program: a string of its own; BIOS ones are packed and hide it."""
    found = _IPXE_VERSION.search(data)
    return f"iPXE {found[1].decode()}" if found else "packed, version unknown"


def check_images(config: Config) -> Iterator[Finding]:
    for name, each in config.classes.items():
        try:
            image = images.find(config.images_dir, each.image, name)
        except UsageError as error:
            made = images.names(config.images_dir)
            todo = "pxed image list shows what there is" if made else "see README.md, Serve a lab"
            yield Finding(f"image {name}", BROKEN, str(error), todo)
            continue
        if each.mode == "provision" and image.why_diskless:
            yield Finding(f"image {name}", BROKEN, f"{image} cannot be installed",
                          f'{image.why_diskless}: set mode = "diskless"')  # fmt: skip
            continue
        yield Finding(f"image {name}", OK, f"{image}: {', '.join(image.devices)}")
        if name == "rpi":
            yield from check_tree(image, each.shelf)


def check_tree(image: images.Image, shelf: int) -> Iterator[Finding]:
    """What keeps a Raspberry Pi from booting an image: broken if it keeps every model from it."""
    if image.tree is None:
        text = f"{image} has no boot directory"
        yield Finding("Raspberry Pi", BROKEN, text, "make it with pxed image build raspios-like")
        return
    found = pi.lacks(image.tree, shelf)
    for lack in found:
        grade = BROKEN if lack.all_models else WARN
        yield Finding("Raspberry Pi", grade, f"{image}: {lack}", lack.todo)
    able = [m for m in pi.MODELS if not any(m in lack.models for lack in found)]
    if able:
        yield Finding("Raspberry Pi", OK, f"{image} has what a {' and a '.join(able)} asks for")
    elif not any(lack.all_models for lack in found):
        yield Finding("Raspberry Pi", BROKEN, f"{image}: no model can boot it", "see above")


def check_disk(config: Config) -> Iterator[Finding]:
    place = next(p for p in (config.state_dir, *config.state_dir.parents) if p.exists())
    if place == config.state_dir:
        disk.refuse_read_only(place)
    free, size = shutil.disk_usage(place).free, config.midlayer.size
    room = max(free - config.midlayer.keep_free, 0) // size
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        yield Finding("disk", BROKEN, f"{place}: is read-only", "choose another state_dir")
        return
    text = f"{amount(free)} free in {place}: {room} clients may fill their {amount(size)}"
    if free < config.midlayer.keep_free:
        todo = "free some space, or lower [midlayer] keep_free"
        yield Finding("disk", BROKEN, f"{text}; no new midlayer will be made", todo)
    elif room < _EXPECTED_CLIENTS // 10:
        yield Finding("disk", WARN, text, "a larger disk, or a smaller [midlayer] size")
    else:
        yield Finding("disk", OK, text)


def check_limits(config: Config) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = (hard - 100) // _FDS_PER_CLIENT
    text = f"{hard}: enough for {clients} clients"
    if clients < _EXPECTED_CLIENTS:
        yield Finding("open files", WARN, text, "raise the limit: ulimit -Hn, or LimitNOFILE=")
    else:
        yield Finding("open files", OK, text)
    try:
        maps = int(_MAPS.read_text())
    except (OSError, ValueError):
        maps = 65530
    if maps // _MAPS_PER_CLIENT < _EXPECTED_CLIENTS * 2:
        yield Finding("mappings", WARN, f"{maps}", f"sysctl vm.max_map_count={65530}")
    aoe = config.aoe
    try:
        ring_sizes(aoe.max_clients, aoe.bufcnt, aoe.workers)
    except AoeError as error:
        yield Finding("ring", BROKEN, str(error), "lower [aoe] bufcnt or max_clients")
        return
    text = f"{aoe.max_clients} clients may send {aoe.bufcnt} requests at once"
    if aoe.max_clients < _EXPECTED_CLIENTS // 2:
        yield Finding("ring", WARN, text, "raise [aoe] max_clients to the number of your machines")
    else:
        yield Finding("ring", OK, text)


def _newest(config: Config) -> float:
    """When the last of pxed's files was written that says something of the time."""
    stamps = [0.0]
    for path in (Path(__file__), config.state_dir / "pxed.db", config.state_dir / "pxed.db-wal"):
        with contextlib.suppress(OSError):
            stamps.append(path.stat().st_mtime)
    return max(stamps)


def check_clock(config: Config) -> Iterator[Finding]:
    """A clock can be seen to be behind: what is dated later is there already."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    newest = _newest(config)
    if newest > now + _CLOCK_SLACK:
        then = time.strftime("%Y-%m-%d", time.gmtime(newest))
        text = f"{stamp}, and pxed was here on {then} already"
        yield Finding("clock", BROKEN, text, "set it: timedatectl set-ntp true")
    else:
        yield Finding("clock", OK, stamp)


def check_rivals(config: Config) -> Iterator[Finding]:
    from pxed.net.link import look_up
    from pxed.net.rival import find_rivals

    rivals = asyncio.run(find_rivals(look_up(config.interface)))
    mode = config.dhcp.mode
    for rival in rivals:
        if rival.boots:
            todo = "switch its network boot off: clients take whichever answers first"
            yield Finding("other servers", BROKEN, str(rival), todo)
        elif mode == "all":
            todo = 'switch it off, or set [dhcp] mode = "pxe-only" or "proxy"'
            yield Finding("other servers", BROKEN, str(rival), todo)
        else:
            todo = "keep our [dhcp] range out of its own" if mode == "pxe-only" else ""
            yield Finding("other servers", OK, f"{rival}: goes with mode {mode}", todo)
    if not rivals:
        todo = (
            'nobody else gives systems an address: set [dhcp] mode = "all"'
            if mode == "proxy"
            else ""
        )
        grade = BROKEN if mode == "proxy" else OK
        yield Finding("other servers", grade, "no other DHCP server answers here", todo)


def simulated(running: ControlClient, firmware: str) -> Finding:
    """A simulated client of this firmware, through DHCP, TFTP and AoE of the running server."""
    steps = running.post("/v1/doctor/simulate", {"firmware": firmware})["steps"]
    text = "; ".join(f"{s['step']} {s['text']}".strip() for s in steps)
    good = bool(steps) and all(s["good"] for s in steps)
    todo = "" if good else "see pxed status and pxed event; the simulation skips cable and switch"
    return Finding(f"{firmware} client (simulated)", OK if good else BROKEN, text, todo)
