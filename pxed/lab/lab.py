"""A laboratory on one machine: a switch, a server's namespace and diskless clients, without trace.

    with Lab() as lab:
        lab.server.popen(["pxed", "serve", "-i", "eth0"])
        client = lab.add_client()
        client.power_on()
        client.wait_running()

Everything runs in namespaces that die with this process, however it dies; the one thing that
kill -9 leaves is a temporary directory, and the next ``Lab.clean_stale`` removes it.
"""

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from pxed.errors import HostError, UsageError
from pxed.lab.netns import Namespace
from pxed.lab.qemu import Client, Firmware

_PREFIX = "pxed-lab-"
LINK_LIMIT = 60.0
_SERVER_ADDRESS = "10.77.0.1/24"


class Lab:
    """A switch and a server (``server``: eth0, 10.77.0.1/24) until ``close``; a context manager.

    ``directory`` is the lab's own and goes with it. HostError without root or a needed program.
    """

    def __init__(self, *, mtu: int = 1500) -> None:
        for program, package in (("ip", "iproute2"), ("setpriv", "util-linux")):
            if shutil.which(program) is None:
                raise HostError(f"{program} is missing: apt install {package}")
        self.clean_stale()
        self.mtu = mtu
        self.clients: list[Client] = []
        self.hosts: dict[str, Namespace] = {}
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (self.directory / "owner").write_text(_identity(os.getpid()) or "")
        self._ports = 0
        self._port_of: dict[str, str] = {}
        try:
            self.switch = Namespace("switch")
            # Nobody waits for spanning tree here, and no multicast or broadcast frame is lost.
            self.switch.ip(
                "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set br0 mtu {mtu} up",
            )
            self.server = self.add_host("server", _SERVER_ADDRESS)
        except BaseException:
            self.close()
            raise

    def add_host(self, name: str, address: str | None = None) -> Namespace:
        """Another machine on the switch: a namespace with ``eth0``, and ``address`` if given."""
        if name in self.hosts:
            raise UsageError(f"there is a host {name} in this lab already")
        host = Namespace(name)
        self.hosts[name] = host
        port = self._port("veth")
        self.switch.ip(
            f"link add {port} mtu {self.mtu} type veth"
            f" peer name eth0 mtu {self.mtu} netns {host.pid}",
            f"link set {port} master br0 up",
        )
        self._port_of[name] = port
        host.ip("link set eth0 up", *([f"addr add {address} dev eth0"] if address else []))
        self.wait_link(name)
        return host

    def wait_link(self, name: str) -> None:
        """Wait until the switch forwards what this host, whose ``eth0`` is up, sends; HostError.

        The kernel tells the bridge of a carrier in a work queue of its own: what is sent before is
        lost.
        """
        shown = ["bridge", "link", "show", "dev", self._port_of[name]]
        until = time.monotonic() + LINK_LIMIT
        while "state forwarding" not in self.switch.run(shown).stdout:
            if time.monotonic() > until:
                raise HostError(f"the switch does not forward what {name} sends")
            time.sleep(0.01)

    def add_client(
        self,
        *,
        firmware: Firmware = "bios",
        name: str | None = None,
        mac: str | None = None,
        kind: type[Client] = Client,
        **options: Any,
    ) -> Client:
        """A diskless machine on the switch, still off; ``options`` are those of ``kind``."""
        number = len(self.clients) + 1
        name = name or f"seat-{number:02d}"
        mac = (mac or f"52:54:00:00:{number >> 8 & 0xFF:02x}:{number & 0xFF:02x}").lower()
        if any(client.name == name or client.mac == mac for client in self.clients):
            raise UsageError(f"there is a client {name} or {mac} in this lab already")
        tap = self._port("tap")
        self.switch.ip(
            f"tuntap add dev {tap} mode tap",
            f"link set {tap} mtu {self.mtu} master br0 up",
        )
        client = kind(
            self.switch, self.directory / name, name=name, mac=mac, tap=tap,
            firmware=firmware, mtu=self.mtu, **options,
        )  # fmt: skip
        self.clients.append(client)
        return client

    def close(self) -> None:
        """Power every client off, end the namespaces and remove the directory; twice is fine."""
        for client in self.clients:
            client.close()
        for host in (*self.hosts.values(), getattr(self, "switch", None)):
            if host is not None:
                host.close()
        self.hosts.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def clean_stale() -> list[Path]:
        """Remove what labs left whose process is gone; the directories removed."""
        removed = []
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                owner = (folder / "owner").read_text()
                pid = owner.partition(" ")[0]
                if pid.isdigit() and _identity(int(pid)) != owner:
                    shutil.rmtree(folder)
                    removed.append(folder)
        return removed

    def _port(self, kind: str) -> str:
        self._ports += 1
        return f"{kind}{self._ports}"


def _identity(pid: int) -> str | None:
    """The process, told apart from a later one with the same number; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    started = stat.rpartition(")")[2].split()[19]
    return f"{pid} {started}"
