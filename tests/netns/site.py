"""The site's own servers and relays, by other people, for tests: Kea, dnsmasq, ISC's relay."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxed.lab.netns import Namespace
from tests.conftest import Cable, requires
from tests.netns.test_mode import dnsmasq

_SO_TIMESTAMPNS = 35
RANGE = "10.77.0.100", "10.77.0.120"


def started(
    process: "subprocess.Popen[bytes]", log: Path, word: bytes, seconds: float = 60
) -> None:
    """Wait until ``word`` is in its log."""
    until = time.monotonic() + seconds
    while word not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.02)


def vblade(
    host: Namespace, shelf: int, slot: int, disk: Path, *options: str
) -> "subprocess.Popen[bytes]":
    """Debian's target at this address of ``eth0``; it hears requests when this returns.

    Who looks for others listens for 0.3 s. A target of another machine would not wait for ours, so
    this one is before all others.
    """
    requires("vblade")
    process = host.popen(["vblade", *options, str(shelf), str(slot), "eth0", str(disk)])
    with contextlib.suppress(PermissionError):  # in some containers
        os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
    until = time.monotonic() + 60
    while not _has_packet_socket(process.pid):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@contextlib.contextmanager
def slowness(host: Namespace) -> Iterator[Callable[[], bool]]:
    """Whether no AoE target in ``host`` has answered within 0.2 s since that was last asked.

    Who looks for others at its start listens for 0.3 s, and cannot know of a target that was held
    up for longer.
    """
    with host.inside():
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    with ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        ear.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        ear.bind(("eth0", 3))  # ETH_P_ALL: what leaves is heard too

        def slow() -> bool:
            asked, found = dict[bytes, float](), False
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, ((_, _, stamp),), _, _ = ear.recvmsg(2000, 64)
                    seconds, nanoseconds = struct.unpack("qq", stamp)
                    if frame[12:14] == b"\x88\xa2":
                        at, tag = seconds + nanoseconds / 1e9, frame[20:24]
                        if not frame[14] & 8:
                            asked.setdefault(tag, at)
                        else:
                            found = found or at - asked.get(tag, 0) < 0.2
            return not found

        yield slow


def _has_packet_socket(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]
    sockets = {f"socket:[{line.split()[8]}]" for line in lines if line.split()[4] != "0"}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(each) in sockets:
                return True
    return False


def kea(
    host: Namespace, folder: Path, file: str = "", server: str = ""
) -> "subprocess.Popen[bytes]":
    """Kea on ``eth0`` of ``host``; ``file`` and ``server`` are its boot file and next-server."""
    requires("kea-dhcp4")
    subnet = {"id": 1, "subnet": "10.77.0.0/24", "pools": [{"pool": " - ".join(RANGE)}]}
    boot = {"boot-file-name": file, "next-server": server or "10.77.0.2"} if file else {}
    config = {
        "Dhcp4": {
            "interfaces-config": {"interfaces": ["eth0"]},
            "lease-database": {"type": "memfile", "persist": False},
            "valid-lifetime": 600,
            "subnet4": [subnet | boot],
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO",
                         "output_options": [{"output": "stdout"}]}],
        }
    }  # fmt: skip
    path, log = folder / "kea.json", folder / "kea.log"
    path.write_text(json.dumps(config))
    with log.open("wb") as out:
        process = host.popen(
            ["env", f"KEA_PIDFILE_DIR={folder}", "KEA_LOCKFILE_DIR=none", "kea-dhcp4", "-c",
             str(path)],
            stdout=out, stderr=out,
        )  # fmt: skip
    started(process, log, b"DHCP4_STARTED")
    return process


def site_server(
    kind: str, host: Namespace, folder: Path, file: str = ""
) -> "subprocess.Popen[bytes]":
    """Kea or dnsmasq at 10.77.0.2; ``file``: it tells firmware to boot this."""
    if kind == "kea":
        return kea(host, folder, file)
    requires("dnsmasq")
    more = [f"--dhcp-boot={file}"] if file else []
    return dnsmasq(Cable(host, host), folder, "--no-ping", *more)


Relay = Callable[[Namespace, Path], "subprocess.Popen[bytes]"]


def isc_relay(host: Namespace, folder: Path) -> "subprocess.Popen[bytes]":
    """From ``eth1`` to 10.77.0.1 by ``eth0``; it adds option 82."""
    requires("dhcrelay")
    log = folder / "relay.log"
    with log.open("wb") as out:
        process = host.popen(
            ["dhcrelay", "-4", "-d", "-a", "--no-pid", "-id", "eth1", "-iu", "eth0", "10.77.0.1"],
            stdout=out, stderr=out,
        )  # fmt: skip
    started(process, log, b"Socket/fallback")  # the last that it opens
    return process


def dnsmasq_relay(host: Namespace, folder: Path) -> "subprocess.Popen[bytes]":
    """The same by dnsmasq, which adds nothing."""
    requires("dnsmasq")
    near = host.run(["ip", "-4", "-o", "addr", "show", "dev", "eth1"]).stdout.split()[3]
    log = folder / "relay.log"
    with log.open("wb") as out:
        process = host.popen(
            ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root",
             f"--dhcp-relay={near.split('/')[0]},10.77.0.1"],
            stdout=out, stderr=out,
        )  # fmt: skip
    started(process, log, b"DHCP relay")
    return process


def networkd(host: Namespace, folder: Path, network: str) -> "subprocess.Popen[bytes]":
    """systemd-networkd in ``host`` with ``network`` as eth0's; /run and /sys are its own."""
    program = "/lib/systemd/systemd-networkd"
    requires(program)
    if b"systemd-network" not in Path("/etc/passwd").read_bytes():
        pytest.skip("needs the user systemd-network: install systemd")
    (folder / "10.network").write_text(f"[Match]\nName=eth0\n[Network]\n{network}")
    script = (
        "mount -t tmpfs none /run && mount -t sysfs -o ro none /sys &&"
        " mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases &&"
        f" cp {folder}/10.network /run/systemd/network/ &&"
        " chown -R systemd-network /run/systemd/netif && chmod -R a+rX /run/systemd &&"
        f" exec {program}"
    )
    return host.popen(["unshare", "--mount", "sh", "-c", script])
