"""What the control socket shows: the server's state and its clients, as JSON."""

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from aoe_fast import Server, Target
from pxed.choice import Choice, in_use
from pxed.clients import Clients
from pxed.config import Config
from pxed.control import Json
from pxed.eventlog import EventLog
from pxed.events import Kind
from pxed.exports import Exports
from pxed.images import Image
from pxed.lives import Lives
from pxed.mac import Mac
from pxed.narrative import tell
from pxed.net.link import Link
from pxed.seat import Client

if TYPE_CHECKING:
    from pxed.netboot import NetBoot


class Core(Protocol):
    """The running server as it is shown; ``pxed.app.App`` is one."""

    events: EventLog
    link: Link
    choice: Choice
    exports: Exports
    lives: Lives
    netboot: "NetBoot"
    target: Target
    aoe: Server

    @property
    def disk(self) -> str: ...

    @property
    def config(self) -> Config: ...

    @property
    def images(self) -> dict[str, Image]: ...

    @property
    def clients(self) -> Clients: ...


class Status:
    """Looks at a running server; nothing here changes it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._started = time.monotonic()

    @property
    def events(self) -> EventLog:
        return self._core.events

    def status(self) -> Json:
        counters = self._core.aoe.counters
        stats = self._core.target.stats
        config, boot = self._core.config, self._core.netboot
        return {
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 1),
            "interface": config.interface,
            "mac": self._core.link.mac,
            "ip": ", ".join(str(address) for address in self._core.link.addresses),
            "mtu": self._core.link.mtu,
            "state_dir": str(config.state_dir),
            "disk": self._core.disk,
            "dhcp": {"mode": str(boot.mode), "configured": config.dhcp.mode,
                     "range": boot.leases.range, "size": boot.leases.size,
                     "free": boot.leases.free, "unclaimed": boot.leases.unclaimed,
                     "idle": boot.leases.idle, **_counts(boot.dhcp.counters),
                     "dropped": boot.dhcp.dropped},
            "conflicts": [
                {"what": f.what.value, "rival": f.mac, "ip": f.ip, "offer": f.offer,
                 "consequence": f.consequence, "serious": f.serious, "since": f.since}
                for f in boot.conflicts
            ],
            "tftp": {
                "bytes": self._core.lives.tftp_bytes,
                **_counts(boot.tftp.counters),
                "dropped": boot.tftp.dropped,
                **boot.tftp.mover.counters,
            },
            "http": {"port": config.http.port, **_counts(boot.http.counters)},
            "events": {"not_logged": self._core.lives.not_logged},
            "images": {name: str(image) for name, image in self._core.images.items()},
            "midlayers": {
                "count": sum(self._core.exports.has_private(c.mac) for c in self._core.clients),
                "size": config.midlayer.size,
                "durability": config.midlayer.durability,
            },
            "clients": dict(Counter(client.state.value for client in self._core.clients)),
            "degraded": sum(c.degraded and in_use(c) for c in self._core.clients),
            "aoe": {name: int(counters[name].sum()) for name in counters.dtype.names or ()}
            | {name: int(stats[name].sum()) for name in ("read_bytes", "written_bytes")},
        }  # fmt: skip

    def client_list(self) -> list[Json]:
        return [self.brief(c) for c in self.sorted_clients()]

    def sorted_clients(self) -> list[Client]:
        """All clients, by name and address; any thread may ask."""
        return sorted(self._core.clients, key=lambda client: (client.name, client.mac))

    def client_show(self, mac: str) -> Json | None:
        client = self._core.clients.get(Mac(mac))
        if client is None:
            return None
        timeline = [
            {
                "stage": step.stage.label,
                "time": step.time,
                "seconds": round(step.time - client.boot_started, 3),
                "detail": step.detail,
            }
            for step in client.timeline
        ]
        trace = self._core.lives.traces.of(client.mac)
        hints = [e.detail.get("text") for e in trace if e.kind is Kind.HINT]
        lines = tell(trace)
        seen = [
            {"time": line.time, "seconds": round(line.time - lines[0].time, 3),
             "text": line.text, "count": line.count}
            for line in lines
        ]  # fmt: skip
        return self.brief(client) | {"timeline": timeline, "hints": hints, "seen": seen}

    def brief(self, client: Client) -> Json:
        """One client as lists show it."""
        return _brief(client) | {"waiting": not self._core.choice.admits(client.mac, client)}


def _brief(client: Client) -> Json:
    return {
        "mac": client.mac,
        "macs": client.macs,
        "name": client.name,
        "note": client.note,
        "groups": client.groups,
        "admission": client.admission,
        "order": client.order,
        "once": client.once,
        "mode": client.mode,
        "fresh": client.fresh,
        "state": client.state.value,
        "stage": client.stage.label if client.stage is not None else None,
        "class": client.class_name,
        "firmware": client.firmware,
        "arch": client.arch,
        "ip": client.ip,
        "image": client.image,
        "boots": client.boots,
        "boot_started": client.boot_started,
        "last_seen": client.last_seen,
        "degraded": client.degraded,
        "why": client.why,
        "result": client.result,
        "provisioned": client.provisioned,
    }


def _counts(counters: Any) -> dict[str, int]:
    return {str(name): int(value) for name, value in dict(counters).items()}
