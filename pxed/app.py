"""The server: builds every service from the configuration, joins them, starts and stops them.

Protocols emit events; the events feed the clients' state machine; its changes lead to deeds here:
a new boot gets its midlayer and its view. Nothing else acts.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import uvloop

from aoe_fast import AoeError, Server, Target
from pxed import images
from pxed.clients import Change, Client, Clients, State, What
from pxed.config import Config
from pxed.control import Control, Json
from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES, BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.replies import Mode
from pxed.errors import HostError, PxedError
from pxed.eventlog import EventLog
from pxed.events import Event, Kind
from pxed.exports import Exports
from pxed.host import claim, raise_file_limit
from pxed.http.site import program_url, script_url
from pxed.images import SLOTS
from pxed.mac import Mac
from pxed.midlayers import Midlayers
from pxed.net.link import Link, look_up
from pxed.net.link import Watch as LinkWatch
from pxed.netboot import NetBoot, check
from pxed.store import Store
from pxed.watch import Watch, erase_report
from pxed.why import Traces, explain, hint

log = logging.getLogger("pxed")

POLL_BUSY = 0.02  # seconds between looks at the AoE counters while somebody boots
POLL_IDLE = 0.25
TICK = 1.0
_LOUD = (
    "boot",
    "stage",
    "state",
    "alarm",
    "rival",
    "rival-gone",
    "hint",
)  # kinds that are logged always
PREPARERS = 4  # threads that clone midlayers: they wait for the disk, not for the processor


class App:
    """Everything that ``pxed serve`` runs, between ``start`` and ``stop``.

    ``start`` raises PxedError in one line and leaves nothing behind when something is wrong.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.events = EventLog()
        self.traces = Traces()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dirty: set[Mac] = set()
        self._started = time.monotonic()
        self._tftp_bytes = 0

    # Start and stop

    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        self._started = time.monotonic()

    async def _start(self) -> None:
        config = self.config
        raise_file_limit()
        self.link: Link = look_up(config.interface)
        self.images = {
            name: images.find(config.images_dir, each.image, name)
            for name, each in config.classes.items()
        }
        check(config, self.images)
        if os.geteuid() != 0:
            raise HostError("serving a network needs root: run it with sudo")
        self._stack.callback(os.close, claim(config.state_dir))
        self.midlayers = Midlayers(config.midlayers_dir, config.midlayer.size)
        self.midlayers.open()
        self.store = self._stack.enter_context(Store(config.state_dir / "pxed.db"))
        self.clients = Clients(self.store.clients())
        self._stack.callback(self._save)
        self._start_aoe()
        await self._start_boot_protocols()
        self._preparers = ThreadPoolExecutor(PREPARERS, thread_name_prefix="midlayer")
        self._stack.callback(self._preparers.shutdown)
        self._spawn(self._poll_aoe())
        self._spawn(self._tick())
        control = Control(self, config.control_socket)  # last: who is answered can rely on the rest
        await control.start()
        self._stack.push_async_callback(control.close)

    def _start_aoe(self) -> None:
        config = self.config
        self.target = Target(bufcnt=config.aoe.bufcnt)
        shelves = {name: each.shelf for name, each in config.classes.items()}
        self.exports = Exports(self.target, shelves, config.midlayer.durability)
        self._stack.callback(self.exports.close)
        self.exports.show_to_all(self.images)
        for client in self.clients:
            self._restore_view(client)
        self.watch = Watch(self.target, self.midlayers.report_path)
        self.watch.refresh()
        self.aoe = Server(
            self.target, [config.interface], workers=config.aoe.workers, spin_us=config.aoe.spin_us
        )
        try:
            self.aoe.start()
        except AoeError as error:
            raise HostError(str(error)) from error
        self._stack.callback(self.aoe.stop)

    def _restore_view(self, client: Client) -> None:
        """A client known from before must not notice the restart: the same view at once."""
        image = self._pinned(client)
        if image is None or not self.midlayers.exists(client.mac):
            return
        try:
            self._show(client, image)
        except PxedError as error:
            log.error("%s: its view cannot be restored: %s", client.mac, error)

    def _pinned(self, client: Client) -> images.Image | None:
        """The image that this client runs, or else would boot now; None for no class here."""
        if client.class_name not in self.config.classes:
            return None
        if client.image and client.state in (State.RUNNING, State.LOST, State.BOOTING):
            with contextlib.suppress(PxedError):
                return images.find(self.config.images_dir, client.image, client.class_name)
        return self._image_for(client)

    def _image_for(self, client: Client) -> images.Image:
        return self._image_of(client.mac, client.class_name)

    def _image_of(self, mac: Mac, class_name: str) -> images.Image:
        override = self.config.clients.get(mac)
        if override is not None and override.image is not None:
            return images.find(self.config.images_dir, override.image, class_name)
        return self.images[class_name]

    async def _start_boot_protocols(self) -> None:
        self.netboot = NetBoot(
            self.config, self.link, self.clients, self.store,
            plan=self._plan, image_of=self._image_of, root_path=self._root_path, emit=self.emit,
        )  # fmt: skip
        await self.netboot.start()
        self._stack.push_async_callback(self.netboot.close)
        watch = LinkWatch(self.config.interface, self._link_changed)
        await watch.start()
        self._stack.push_async_callback(watch.close)

    def _link_changed(self, link: Link | None) -> None:
        """The interface's state changed: follow its address (M1), and say what else happened."""
        if link is None or not link.up or not link.carrier:
            what = "is gone" if link is None else "is down" if not link.up else "has no carrier"
            text = f"{self.config.interface} {what}: no client can be served"
            self.emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
            return
        self.link = link
        if not link.addresses:
            text = f"{link.name} has no IPv4 address: DHCP and TFTP wait for one"
            self.emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
            return
        if self.netboot.update(link):
            log.info("%s has a new address: %s", link.name, link.address())

    async def stop(self) -> None:
        """Stop every service in reverse order, sync and save; stopping twice is fine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()

    # What a machine boots

    def _root_path(self, class_name: str) -> str:
        each = self.config.classes[class_name]
        slot = SLOTS["boot"] if each.mode == "diskless" else SLOTS["tfm"]
        return f"aoe:e{each.shelf}.{slot}"

    def _plan(
        self, mac: Mac, firmware: Firmware, arch: int | None, _features: frozenset[int]
    ) -> BootPlan | None:
        class_name = "rpi" if firmware is Firmware.RPI else "x86"
        if class_name not in self.config.classes:
            return None
        each, base = self.config.classes[class_name], self.netboot.base
        http_file = HTTP_FILES.get(arch if arch is not None else -1)
        plan = BootPlan(
            boot_file=BOOT_FILES.get(arch if arch is not None else 0),
            root_path=self._root_path(class_name),
            script=f"{class_name}.ipxe" if self.netboot.mode is Mode.PROXY else None,
            http_url=program_url(base, http_file) if http_file else None,
            own_ipxe=each.ipxe == "own",
        )
        if each.boot == "kernel":
            image = self._image_of(mac, class_name)
            return replace(plan, root_path=None, script=script_url(base, image))
        return plan

    # Events and what follows from them

    def emit(self, event: Event) -> None:
        """Take an event from any protocol: log it, feed it to the clients, act on the changes."""
        if event.kind is Kind.TFTP_DONE:
            self._tftp_bytes += int(str(event.detail.get("bytes", 0)))
        if event.kind is not Kind.AOE_HEARD:
            self._note(event.kind.value, event.mac, event.time, event.detail)
        self.netboot.heard(event)
        changes = self.clients.feed(event)
        if any(change.what is What.NEW_BOOT for change in changes) and event.mac is not None:
            self.traces.begin(event.mac)
        for change in changes:
            self._act(change)
        if event.mac is not None and (client := self.clients.get(event.mac)) is not None:
            self._dirty.add(event.mac)
            self.traces.add(event)
            self._look_into(client, event)

    def _look_into(self, client: Client, event: Event) -> None:
        """What this event says of a delay, or of a boot that ends before it has begun."""
        if event.kind is Kind.DISCOVER and (why := hint(self.traces.of(client.mac))) is not None:
            self.emit(Event(Kind.HINT, client.mac, event.time, {"text": str(why)}))
        if client.state is State.SEEN and event.kind in (Kind.IGNORED, Kind.POOL_FULL):
            self._explain(client, event.time)

    def _explain(self, client: Client, now: float) -> None:
        """End a boot whose cause of failure is known."""
        reason = explain(client, self.traces.of(client.mac), now, self.netboot.scene())
        if reason is not None:
            for change in self.clients.fail(client, now, str(reason)):
                self._act(change)

    def _act(self, change: Change) -> None:
        client = change.client
        self._dirty.add(client.mac)
        if change.what is What.NEW_BOOT:
            override = self.config.clients.get(client.mac)
            client.name = (override.name if override else None) or client.name
            self._note("boot", client.mac, change.time, {"number": client.boots})
            self.watch.begin_boot(client.mac)
            self._spawn(self._prepare(client, change.time))
        elif change.what is What.STAGE and change.step is not None:
            after = round(change.step.time - client.boot_started, 3)
            self._note(
                "stage",
                client.mac,
                change.step.time,
                {"stage": change.step.stage.label, "after": after, "detail": change.step.detail},
            )
        elif change.what is What.STATE:
            detail = {"state": client.state.value, "why": client.why, "degraded": client.degraded}
            self._note("state", client.mac, change.time, detail)
            if client.state is State.RUNNING:
                self.netboot.settled(client.mac)

    def _note(self, kind: str, mac: Mac | None, at: float, detail: Any) -> None:
        self.events.add({"time": at, "kind": kind, "mac": mac, **detail})
        level = logging.INFO if kind in _LOUD else logging.DEBUG
        if log.isEnabledFor(level):
            words = " ".join(f"{key}={value}" for key, value in detail.items() if value != "")
            log.log(level, "%s %s %s", mac or "-", kind, words)

    async def _prepare(self, client: Client, since: float) -> None:
        """Midlayer and view of a client that has begun to boot (M9)."""
        try:
            image = self._image_for(client)
            mac = client.mac
            if self.config.classes[client.class_name].mode == "diskless":
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._preparers, self._make_private, mac)
            client.image = str(image)
            self._show(client, image)
            self.watch.refresh()
        except (PxedError, KeyError) as error:
            self.emit(Event(Kind.MIDLAYER_FAILED, client.mac, time.time(), {"why": str(error)}))
            log.error("%s: cannot prepare its devices: %s", client.mac, error)
            return
        now = time.time()
        detail = {"path": str(self.midlayers.path(mac)), "seconds": round(now - since, 6)}
        self.emit(Event(Kind.MIDLAYER_READY, mac, now, detail))

    def _make_private(self, mac: Mac) -> None:
        self.midlayers.prepare(mac)
        erase_report(self.midlayers.report_path(mac))

    def _show(self, client: Client, image: images.Image) -> None:
        mac = client.mac
        if self.midlayers.exists(mac):
            self.exports.open_private(
                mac, self.midlayers.path(mac), self.midlayers.report_path(mac)
            )
        self.exports.show(mac, client.class_name, image)

    # Work that goes on

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the server failed", exc_info=error)

    async def _poll_aoe(self) -> None:
        while True:
            for event in self.watch.poll(time.monotonic_ns(), time.time()):
                self.emit(event)
            booting = any(client.in_boot for client in self.clients)
            await asyncio.sleep(POLL_BUSY if booting else POLL_IDLE)

    async def _tick(self) -> None:
        drops = 0
        while True:
            await asyncio.sleep(TICK)
            now = time.time()
            for client in [client for client in self.clients if client.in_boot]:
                self._explain(client, now)
            for change in self.clients.tick(now):
                self._act(change)
            self._save()
            now_dropped = int(self.aoe.counters["drops"].sum())
            if now_dropped > drops:
                text = f"{now_dropped - drops} AoE frames were dropped: the ring was full"
                self.emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
                drops = now_dropped

    def _save(self) -> None:
        dirty = [client for mac in self._dirty if (client := self.clients.get(mac)) is not None]
        self._dirty.clear()
        try:
            self.store.save_clients(dirty)
        except HostError as error:
            self._dirty |= {client.mac for client in dirty}
            log.error("%s", error)

    # What the control socket shows

    def status(self) -> Json:
        counters = self.aoe.counters
        stats = self.target.stats
        config, boot = self.config, self.netboot
        return {
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 1),
            "interface": config.interface,
            "mac": self.link.mac,
            "ip": ", ".join(str(address) for address in self.link.addresses),
            "mtu": self.link.mtu,
            "state_dir": str(config.state_dir),
            "dhcp": {"mode": str(boot.mode), "configured": config.dhcp.mode,
                     "range": boot.leases.range, **_counts(boot.dhcp.counters)},
            "conflicts": [
                {"what": f.what.value, "rival": f.mac, "ip": f.ip, "offer": f.offer,
                 "consequence": f.consequence, "serious": f.serious, "since": f.since}
                for f in boot.conflicts
            ],
            "tftp": {"bytes": self._tftp_bytes, **_counts(boot.tftp.counters)},
            "http": {"port": config.http.port, **_counts(boot.http.counters)},
            "images": {name: str(image) for name, image in self.images.items()},
            "midlayers": {
                "count": sum(1 for client in self.clients if self.exports.has_private(client.mac)),
                "size": config.midlayer.size,
                "durability": config.midlayer.durability,
            },
            "clients": dict(Counter(client.state.value for client in self.clients)),
            "aoe": {name: int(counters[name].sum()) for name in counters.dtype.names or ()}
            | {name: int(stats[name].sum()) for name in ("read_bytes", "written_bytes")},
        }  # fmt: skip

    def client_list(self) -> list[Json]:
        return [_brief(client) for client in sorted(self.clients, key=lambda c: (c.name, c.mac))]

    def client_show(self, mac: str) -> Json | None:
        client = self.clients.get(Mac(mac))
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
        hints = [e.detail.get("text") for e in self.traces.of(client.mac) if e.kind is Kind.HINT]
        return _brief(client) | {"timeline": timeline, "hints": hints}


def _brief(client: Client) -> Json:
    return {
        "mac": client.mac,
        "name": client.name,
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
    }


def _counts(counters: Any) -> dict[str, int]:
    return {str(name): int(value) for name, value in dict(counters).items()}


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; PxedError if it cannot start."""
    uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    app = App(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await app.start()
    log.info("serving %s (%s)", config.interface, app.link.address())
    try:
        await stopping.wait()
        log.info("stopping")
    finally:
        await app.stop()
