"""The server: builds every service from the configuration, joins them, starts and stops them.

Protocols emit events; the events feed the clients' state machine; its changes lead to deeds here:
a new boot gets its midlayer and its view. Nothing else acts.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from aoe_fast import AoeError, Server, Target
from pxed import images, orders, scripts
from pxed.clients import LOCAL_SCRIPT, Change, Client, Clients, State, What
from pxed.config import Class, Config
from pxed.control import Control, Json
from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES, BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode
from pxed.errors import HostError, PxedError, UsageError
from pxed.eventlog import EventLog
from pxed.events import Event, Kind
from pxed.exports import Exports
from pxed.host import claim, raise_file_limit
from pxed.http.site import program_url, script_url
from pxed.images import SLOTS
from pxed.keeper import Keeper
from pxed.library import Library
from pxed.mac import Mac
from pxed.manage.config import reload_configuration
from pxed.manage.routes import routes
from pxed.midlayers import Midlayers, NoRoom, Prepared
from pxed.net.link import Link, look_up
from pxed.net.link import Watch as LinkWatch
from pxed.netboot import NetBoot, check
from pxed.probe import DOCTOR, Probe
from pxed.store import Store
from pxed.watch import Watch, erase_report
from pxed.why import Traces, explain, hint

log = logging.getLogger("pxed")
T = TypeVar("T")

SHOWN_AGAIN = 1000  # events from before a restart that `pxed event` shows unasked
POLL_BUSY = 0.02  # seconds between looks at the AoE counters while somebody boots
POLL_IDLE = 0.25
TICK = 1.0
REFRESH_SOON = 0.02
QUIET = 1.0  # seconds of silence after which a machine that asks to boot is no longer running
CHECKPOINT = 10.0
ALARM_AGAIN = 60.0
HELPERS = 4  # threads for what people ask for: copies of images, checks, backups
# Kinds that are logged always.
_LOUD = frozenset(
    ("boot", "stage", "state", "refused", "alarm", "mode", "rival", "rival-gone", "hint")
)
PREPARERS = 4  # threads that clone midlayers: they wait for the disk, not for the processor


class App:
    """Everything that ``pxed serve`` runs, between ``start`` and ``stop``.

    ``start`` raises PxedError in one line and leaves nothing behind when something is wrong.
    """

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        """``reread`` reads the configuration again, for a reload."""
        self.config = config
        self.reread = reread
        self.events = EventLog()
        self.traces = Traces()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refreshing: asyncio.TimerHandle | None = None
        self._alarms: dict[str, float] = {}
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
        self.library = Library(config.images_dir)
        self.library.clean()
        self.midlayers = Midlayers(
            config.midlayers_dir, config.midlayer.size, config.midlayer.keep_free
        )
        self.midlayers.open()
        self.store = self._stack.enter_context(Store(config.state_dir / "pxed.db"))
        self.clients = Clients(self.store.clients())
        last = self.store.last_event()
        self.events.restore(last, self.store.events_after(last - SHOWN_AGAIN))
        self.events.archive = lambda since, before: self.store.events(since=since, before=before)
        self.keeper = Keeper(
            self.store, self.clients, self.events, config.events.keep,
            lambda text: self.alarm("store", text),
        )  # fmt: skip
        self._stack.callback(self.keeper.close)
        self._start_aoe()
        await self._start_boot_protocols()
        self._preparers = ThreadPoolExecutor(PREPARERS, thread_name_prefix="midlayer")
        self._stack.callback(self._preparers.shutdown)
        self._helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="manage")
        self._stack.callback(self._helpers.shutdown)
        self._spawn(self._poll_aoe())
        self._spawn(self._tick())
        # Last: who is answered can rely on the rest.
        control = Control(self, config.control_socket, routes(self), config.control.group)
        await control.start()
        self._stack.push_async_callback(control.close)

    def _start_aoe(self) -> None:
        config = self.config
        self.target = Target(bufcnt=config.aoe.bufcnt)
        shelves = {name: each.shelf for name, each in config.classes.items()}
        self.exports = Exports(self.target, shelves, config.midlayer.durability)
        self._stack.callback(self.exports.close)
        self.exports.show_to_all(self.images)
        present, known = self.midlayers.present(), dict[str, images.Image]()
        for client in self.clients:
            if client.mac in present or client.admission == "blocked":
                self._restore_view(client, known)
        self.watch = Watch(self.target, self._report_path)
        self.watch.refresh()
        self.aoe = Server(
            self.target, [config.interface], workers=config.aoe.workers, spin_us=config.aoe.spin_us
        )
        try:
            self.aoe.start()
        except AoeError as error:
            raise HostError(str(error)) from error
        self._stack.callback(self.aoe.stop)

    def _restore_view(self, client: Client, known: dict[str, images.Image] | None = None) -> None:
        """A client known from before must not notice the restart: the same view at once.

        ``known``: images that were looked up before.
        """
        if client.admission == "blocked" and not (client.image and self.in_use(client)):
            self.exports.hide(client.all_macs)
            return
        if client.state in (State.SEEN, State.LOCAL) or client.class_name not in self.images:
            return
        try:
            image = (known or {}).get(client.image) or self._pinned(client)
            if image is not None and (known is not None or self.midlayers.exists(client.mac)):
                self._show(client, image, exists=known is not None)
                if known is not None:
                    known[str(image)] = image
        except PxedError as error:
            log.error("%s: its view cannot be restored: %s", client.mac, error)

    def _pinned(self, client: Client) -> images.Image | None:
        """The image that this client runs, or else would boot now; None for no class here."""
        if client.class_name not in self.config.classes:
            return None
        if client.image and self.in_use(client):
            with contextlib.suppress(PxedError):
                return images.find(self.config.images_dir, client.image, client.class_name)
        return self._image_for(client)

    def _image_for(self, client: Client) -> images.Image:
        return self._image_of(client.mac, client.class_name)

    def _image_of(self, mac: Mac, class_name: str) -> images.Image:
        """The image that this machine of this class would boot now; the MAC may be unknown."""
        client = self.clients.get(mac)
        if client is not None and (spec := orders.parse(client.doing).image):
            return images.find(self.config.images_dir, spec, class_name)
        override = self.config.clients.get(client.mac if client is not None else mac)
        if override is not None and override.image is not None:
            return images.find(self.config.images_dir, override.image, class_name)
        return self.images[class_name]

    async def _start_boot_protocols(self) -> None:
        self.netboot = NetBoot(
            self.config, self.link, self.clients, self.store.leases(), keep=self.keeper.leased,
            plan=self._plan, image_of=self._image_of, scripts=self._scripts(), emit=self.emit,
        )  # fmt: skip
        await self.netboot.start()
        self._stack.push_async_callback(self.netboot.close)
        watch = LinkWatch(self.config.interface, self._link_changed)
        await watch.start()
        self._stack.push_async_callback(watch.close)

    def hang_up(self) -> None:
        """SIGHUP: take over the configuration as it is now, or say why not."""
        try:
            found = reload_configuration(self)
        except PxedError as error:
            log.error("the configuration was not reloaded: %s", error)
            return
        log.info("the configuration was reloaded: %s",
                 "; ".join(str(each) for each in found) or "nothing was changed")  # fmt: skip

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

    @property
    def policy(self) -> Policy:
        """The DHCP server's decisions."""
        return self.netboot.policy

    async def stop(self) -> None:
        """Stop every service in reverse order, sync and save; stopping twice is fine."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()

    # What a machine boots

    def _root_path(self, class_name: str, mode: str | None = None) -> str:
        each = self.config.classes[class_name]
        slot = SLOTS["tfm"] if (mode or each.mode) == "provision" else SLOTS["boot"]
        return f"aoe:e{each.shelf}.{slot}"

    def _plan(
        self, mac: Mac, firmware: Firmware, arch: int | None, _features: frozenset[int]
    ) -> BootPlan | None:
        class_name = "rpi" if firmware is Firmware.RPI else "x86"
        client = self.clients.get(mac)
        if class_name not in self.config.classes or not self.admits(mac, client):
            return None
        each, base = self.config.classes[class_name], self.netboot.base
        mode = (orders.parse(client.ordered).mode if client else "") or each.mode
        boot_file = BOOT_FILES.get(arch if arch is not None else 0)
        if mode == "local":
            if firmware in (Firmware.RPI, Firmware.UEFI_HTTP):
                return None  # without an answer it goes on to its own disk by itself
            return BootPlan(boot_file=boot_file, script=LOCAL_SCRIPT)
        http_file = HTTP_FILES.get(arch if arch is not None else -1)
        plan = BootPlan(
            boot_file=boot_file,
            root_path=self._root_path(class_name, mode),
            script=self._script(class_name, mode) if self.netboot.mode is Mode.PROXY else None,
            http_url=program_url(base, http_file) if http_file else None,
            own_ipxe=each.ipxe == "own",
        )
        if each.boot == "kernel" and mode == "diskless":
            image = self._image_of(mac, class_name)
            return replace(plan, root_path=None, script=script_url(base, image))
        return plan

    def _scripts(self) -> dict[str, bytes]:
        """The iPXE scripts that TFTP serves, by name."""
        found = {LOCAL_SCRIPT: scripts.local()}
        for name in self.config.classes:
            for mode in ("diskless", "provision"):
                found[self._script(name, mode)] = scripts.san(self._root_path(name, mode))
        return found

    def _script(self, class_name: str, mode: str) -> str:
        return f"{class_name}-tfm.ipxe" if mode == "provision" else f"{class_name}.ipxe"

    def admits(self, mac: Mac, client: Client | None) -> bool:
        """Whether this machine may boot here; a simulated one of the doctor's always may."""
        if mac == DOCTOR or client is None:
            open_to_all = self.config.admission.admit == "all"
            return mac == DOCTOR or open_to_all or mac in self.config.clients
        if client.admission:
            return client.admission == "approved"
        known = any(each in self.config.clients for each in client.all_macs)
        return known or self.config.admission.admit == "all"

    @staticmethod
    def in_use(client: Client) -> bool:
        """Whether this machine may be using its devices now, or come back to them."""
        return client.in_boot or client.state in (State.RUNNING, State.LOST)

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
            (self.keeper.changed if changes else self.keeper.heard)(client)
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
        self.keeper.changed(client)
        if change.what is What.NEW_BOOT:
            override = self.config.clients.get(client.mac)
            client.name = (override.name if override else None) or client.name
            if not self.admits(client.mac, client):
                why = ("it is blocked" if client.admission == "blocked"
                       else f"it waits for approval: pxed client approve {client.mac}")  # fmt: skip
                self._note("refused", client.mac, change.time, {"why": why})
                return
            self._note("boot", client.mac, change.time, {"number": client.boots,
                                                         "order": client.doing})  # fmt: skip
            for mac in client.all_macs:
                self.watch.begin_boot(mac)
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
        self.keeper.soon()
        level = logging.INFO if kind in _LOUD else logging.DEBUG
        if log.isEnabledFor(level):
            words = " ".join(f"{key}={value}" for key, value in detail.items() if value != "")
            log.log(level, "%s %s %s", mac or "-", kind, words)

    async def _prepare(self, client: Client, since: float) -> None:
        """Midlayer and view of a client that has begun to boot (M9)."""
        mac = client.mac
        try:
            each = self.config.classes[client.class_name]
            image = self._image_for(client)
            client.mode = orders.parse(client.doing).mode or each.mode
            if client.mode == "local":
                client.image = ""
                return
            if client.mode == "provision" and "tfm" not in image.devices:
                raise UsageError(f"image {image} has no tfm device to provision from")
            made = Prepared(False)
            if client.mode == "diskless":
                made = await self._make_private(client)
            client.image = str(image)
            self._show(client, image)
            self._refresh_soon()
            self.keeper.changed(client)
        except (PxedError, KeyError) as error:
            self.emit(Event(Kind.MIDLAYER_FAILED, mac, time.time(), {"why": str(error)}))
            log.error("%s: cannot prepare its devices: %s", mac, error)
            if isinstance(error, NoRoom):
                self.alarm("no-room", str(error))
            return
        now = time.time()
        detail = {"path": str(self.midlayers.path(mac)), "seconds": round(now - since, 6),
                  "new": made.new, "checked": made.checked}  # fmt: skip
        self.emit(Event(Kind.MIDLAYER_READY, mac, now, detail))

    async def _make_private(self, client: Client) -> Prepared:
        """The files behind a client's own devices; a file system that is damaged is not shown."""
        mac, fresh = client.mac, client.fresh
        override = self.config.clients.get(mac)
        size = override.size if override else None
        # It may not be booting at all, whatever its DISCOVER says: then nobody else may write.
        quiet = self.watch.silence(client.all_macs, time.monotonic_ns()) > QUIET

        def work() -> Prepared:
            check = self.config.midlayer.check and quiet
            if fresh or not self.exports.has_layer(mac):
                self.exports.close_private(mac)
            report = self.midlayers.report_path(mac)
            try:
                made = self.midlayers.prepare(mac, size, fresh=fresh, check=check)
            finally:
                erase_report(report)
            self.exports.open_private(mac, self.midlayers.path(mac), report)
            return made

        try:
            made = await asyncio.get_running_loop().run_in_executor(self._preparers, work)
        except NoRoom:
            raise
        except PxedError as error:
            if not self.midlayers.exists(mac):
                raise
            self.exports.close_private(mac)
            self.exports.open_private(mac, None, self.midlayers.report_path(mac))
            self.alarm(mac, f"{mac}: its midlayer needs a person, it boots without: {error}")
            return Prepared(False, "damaged")
        client.fresh = False
        return made

    def _show(self, client: Client, image: images.Image, *, exists: bool = False) -> None:
        mac = client.mac
        if not self.exports.has_private(mac) and (exists or self.midlayers.exists(mac)):
            self.exports.open_private(
                mac, self.midlayers.path(mac), self.midlayers.report_path(mac)
            )
        self.exports.show(client.all_macs, client.class_name, image)

    def _report_path(self, mac: Mac) -> Path:
        client = self.clients.get(mac)
        return self.midlayers.report_path(client.mac if client is not None else mac)

    def show_again(self, client: Client) -> None:
        """Its addresses or its files were changed by a person: give it the view that is right."""
        self.exports.drop(client.all_macs)
        self._restore_view(client)
        self._refresh_soon()

    def probe(self) -> Probe:
        """A simulated client for the doctor."""
        return Probe(self.policy, self.netboot.open_file, self.target)

    def use_images(self, classes: Mapping[str, Class] | None = None) -> dict[str, images.Image]:
        """Look up again what booting clients get; all or nothing. UsageError if one is missing."""
        found = {
            name: images.find(self.config.images_dir, each.image, name)
            for name, each in (classes or self.config.classes).items()
        }
        if found != self.images:
            self.images = found
            self.exports.show_to_all(found)
        return found

    def uses(self, image: images.Image) -> str:
        """Who needs this image, in one line; empty for nobody. Any thread may ask."""
        for name, each in self.images.items():
            if each.directory == image.directory:
                return f"clients of class {name} boot it: pxed image use another version first"
        for client in list(self.clients):
            who = client.name or client.mac
            if client.image == str(image) and (self.in_use(client) or client.state is State.SEEN):
                return (
                    f"{who} ({client.state.value}) runs it; "
                    f"if it never comes back: pxed client forget {who}"
                )
            override = self.config.clients.get(client.mac)
            specs = [override.image] if override and override.image else []
            specs += [orders.parse(order).image for order in (client.order, client.once)]
            for spec in specs:
                with contextlib.suppress(UsageError):
                    if spec and images.find(self.config.images_dir, spec, "") == image:
                        return f"{who} is to boot it ({spec})"
        return ""

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
            await asyncio.sleep(POLL_BUSY if self.clients.booting else POLL_IDLE)

    async def _tick(self) -> None:
        drops, checkpoint = 0, 0.0
        while True:
            await asyncio.sleep(TICK)
            now = time.time()
            for client in [client for client in self.clients if client.in_boot]:
                self._explain(client, now)
            for change in self.clients.tick(now):
                self._act(change)
            self.keeper.soon()
            if time.monotonic() > checkpoint:
                checkpoint = time.monotonic() + CHECKPOINT
                await self._look_at_disk()
            now_dropped = int(self.aoe.counters["drops"].sum())
            if now_dropped > drops:
                text = f"{now_dropped - drops} AoE frames were dropped: the ring was full"
                self.alarm("drops", text)
                drops = now_dropped

    async def _look_at_disk(self) -> None:
        """What would hold up the loop: bring the database up to date, see what room there is."""
        try:
            await self.keeper.checkpoint()
            await self.blocking(self.midlayers.refuse_if_full)
        except NoRoom as error:
            self.alarm("no-room", str(error))
        except PxedError as error:
            log.error("%s", error)

    async def blocking(self, call: Callable[..., T], *args: Any) -> T:
        """Do something that waits for the disk in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, call, *args)

    def alarm(self, about: str, text: str) -> None:
        """Raise an alarm; the same one again only after a while."""
        now = time.monotonic()
        if now - self._alarms.get(about, -ALARM_AGAIN) >= ALARM_AGAIN:
            self._alarms[about] = now
            self.emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
        if len(self._alarms) > 1000:
            self._alarms.clear()

    def _refresh_soon(self) -> None:
        """One look at the target's rows serves all clients whose views have just changed."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().call_later(REFRESH_SOON, self._refresh)

    def _refresh(self) -> None:
        self._refreshing = None
        self.watch.refresh()

    async def saved(self, changed: Iterable[Client]) -> None:
        """A person changed these: they are in the kernel's hands when this returns."""
        await self.keeper.saved(changed)

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
        return [self.brief(c) for c in self.sorted_clients()]

    def sorted_clients(self) -> list[Client]:
        """All clients, by name and address; any thread may ask."""
        return sorted(self.clients, key=lambda client: (client.name, client.mac))

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
        return self.brief(client) | {"timeline": timeline, "hints": hints}

    def brief(self, client: Client) -> Json:
        """One client as lists show it."""
        return _brief(client) | {"waiting": not self.admits(client.mac, client)}


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
    }


def _counts(counters: Any) -> dict[str, int]:
    return {str(name): int(value) for name, value in dict(counters).items()}


def run(config: Config, reread: Callable[[], Config] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; PxedError if it cannot start. SIGHUP: take over ``reread``."""
    uvloop.run(_serve(config, reread))


async def _serve(config: Config, reread: Callable[[], Config] | None) -> None:
    app = App(config, reread)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, app.hang_up)
    await app.start()
    # What is known now stays: no collection need look at it again and hold up the loop.
    gc.collect()
    gc.freeze()
    log.info("serving %s (%s)", config.interface, app.link.address())
    try:
        await stopping.wait()
        log.info("stopping")
    finally:
        await app.stop()
