"""The server: builds every service from the configuration, joins them, starts and stops them.

Protocols emit events to ``lives``, which acts on them: a new boot gets its devices (``preparing``).
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from aoe_fast import AoeError, Server, Target
from aoe_fast.notify import Notifier
from pxed import privileges
from pxed.beside import Beside
from pxed.bootplans import BootPlans
from pxed.choice import Choice
from pxed.clients import Clients
from pxed.config import Class, Config
from pxed.dhcp.policy import Policy
from pxed.errors import HostError, PxedError, ReadOnlyDisk, UsageError
from pxed.eventlog import EventLog
from pxed.events import Event, Kind
from pxed.exports import Exports
from pxed.host import claim, raise_file_limit
from pxed.images import Image
from pxed.journal import Journal
from pxed.keeper import Keeper
from pxed.library import Library
from pxed.lives import Lives
from pxed.mac import Mac
from pxed.midlayers import Midlayers, NoRoom
from pxed.net.link import Link, look_up
from pxed.net.link import Watch as LinkWatch
from pxed.net.wireless import refuse_wireless
from pxed.overrun import Overruns
from pxed.preparing import BINDING, Preparing
from pxed.probe import Probe
from pxed.seat import Client
from pxed.store import Store
from pxed.threads import Pool
from pxed.watch import Watch

log = logging.getLogger("pxed")
T = TypeVar("T")

SHOWN_AGAIN = 1000  # events from before a restart that `pxed event` shows unasked
POLL_BUSY = 0.02  # seconds between looks at the AoE counters while somebody boots
POLL_IDLE = 0.25
TICK = 1.0
CHECKPOINT = 10.0
SWITCH = 0.001  # seconds that another thread may keep the interpreter from the loop
COPY = 3600.0  # between copies of the database
ALARM_AGAIN = 60.0
STOPPED = "stopped"  # this file's time says when a server stopped in order
RESTART = 10.0  # seconds in which a start is a restart: clients wait
HELPERS = 4  # threads for what people ask for: copies of images, checks, backups


class App:
    """Everything that ``pxed serve`` runs, between ``start`` and ``stop``.

    ``start`` raises PxedError in one line and leaves nothing behind when something is wrong.
    """

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        """``reread`` reads the configuration again, for a reload."""
        self.choice = Choice(config)
        self.reread = reread
        self.events = EventLog()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarms: dict[str, float] = {}
        self._overruns = Overruns()
        self.notifier = Notifier()
        self.disk = ""  # what is wrong with the one below the state directory

    # Start and stop

    async def start(self) -> None:
        # Threads that clone and write are short of nothing but the loop's patience.
        sys.setswitchinterval(SWITCH)
        gc.disable()  # thousands of clients come back, and none of them is rubbish
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        finally:
            gc.enable()

    async def _start(self) -> None:
        config = self.config
        self.link: Link = look_up(config.interface)
        warnings = [refuse_wireless(self.link), self.link.deaf]
        self.choice.use()
        self.choice.check()
        if not privileges.ready():
            raise HostError("serving a network needs root: run it with sudo")
        self._stack.callback(os.close, claim(config.state_dir))
        self.library = Library(config.images_dir)
        self.library.clean()
        self.midlayers = Midlayers(
            config.midlayers_dir, config.midlayer.size, config.midlayer.keep_free
        )
        self.midlayers.open()
        self._open_target()
        self._helpers = Pool(HELPERS, "manage")
        self._stack.callback(self._helpers.shutdown)
        # Waits for answers of others, and meanwhile all the rest can come back.
        beside = Beside(config, self.target, self.exports, self.alarm)
        self._stack.callback(beside.close)
        rivals = asyncio.get_running_loop().run_in_executor(self._helpers, beside.refuse)
        rivals.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.store = self._stack.enter_context(Store(config.state_dir / "pxed.db"))
        self.choice.clients = Clients(self.store.clients())
        last = self.store.last_event()
        self.events.restore(last, self.store.events_after(last - SHOWN_AGAIN))
        self.events.archive = lambda since, before: self.store.events(since=since, before=before)
        self.keeper = Keeper(
            self.store, self.clients, self.events, config.events.keep,
            lambda text: self.alarm("store", text), Journal(config.state_dir / "leases.journal"),
        )  # fmt: skip
        self._stack.callback(self.keeper.close)
        self._restore_views()
        if not _was_serving(config.state_dir):
            await rivals
        try:
            self.aoe.start()
        except AoeError as error:
            raise HostError(str(error)) from error
        self._stack.callback(self.aoe.stop)
        self._spawn(self._mind_rivals(rivals))
        await self._start_boot_protocols()
        self._stack.callback(self.preparing.close)
        self._stack.callback(self._helpers.shutdown)  # they use what is stopped after this
        for warning in filter(None, warnings):
            self.alarm(warning, warning)
        self._spawn(self._poll_aoe())
        self._spawn(self._tick())
        if self.notifier.watchdog:
            self._spawn(self._be_watched())
        # Last: who is answered can rely on the rest. Imported now: see _start_boot_protocols.
        from pxed.control import Control
        from pxed.manage.routes import routes
        from pxed.status import Status

        control = Control(Status(self), config.control_socket, routes(self), config.control.group)
        await control.start()
        self._stack.push_async_callback(control.close)

    def _open_target(self) -> None:
        config, aoe, security = self.config, self.config.aoe, self.config.security
        loop = asyncio.get_running_loop()

        def complain(text: str) -> None:  # called from a thread of the block server's
            loop.call_soon_threadsafe(self.alarm, f"aoe {text}", text)

        try:
            self.target = Target(
                bufcnt=aoe.bufcnt,
                wire_config=security.wire_config,
                wire_reserve=security.wire_reserve,
                state=config.state_dir / "aoe.json",
            )
            self.aoe = Server(
                self.target, [config.interface], workers=aoe.workers, spin_us=aoe.spin_us,
                max_clients=aoe.max_clients, alarm=complain,
            )  # fmt: skip
        except AoeError as error:
            raise UsageError(f"[aoe]: {error}") from error
        shelves = {name: each.shelf for name, each in config.classes.items()}
        self.exports = Exports(self.target, shelves, config.midlayer.durability)
        self._stack.callback(self.exports.close)
        self.exports.show_to_all(self.images)

    def _restore_views(self) -> None:
        self.watch = Watch(self.target, self._report_path)
        self.preparing = Preparing(
            self.choice, self.midlayers, self.exports, self.watch,
            emit=self.emit, alarm=self.alarm, keep=self.keeper.changed,
        )  # fmt: skip
        self.preparing.restore_all()
        self.lives = Lives(
            self.choice, self.events, self.keeper, self.watch,
            lambda client, since: self._spawn(self.preparing.prepare(client, since)),
            self.preparing.drop, self.preparing.unbind,
        )  # fmt: skip

    async def _mind_rivals(self, asked: "asyncio.Future[None]") -> None:
        """After a restart nobody waits for the answers of others; what they say is an alarm."""
        try:
            await asked
        except UsageError as error:
            self.alarm("rival", str(error))

    async def _start_boot_protocols(self) -> None:
        # Clients of a restart wait for their disks, and those are served: the HTTP library, a
        # third of all that is imported, is loaded now.
        from pxed.netboot import NetBoot

        plans = BootPlans(self.choice, lambda: self.netboot.base, lambda: self.netboot.mode)
        self.netboot = self.lives.netboot = NetBoot(
            self.config, self.link, self.clients, self.keeper.known_leases(),
            keep=self.keeper.leased, plan=plans.plan, image_of=self.choice.image_of,
            scripts=plans.scripts(), grub=plans.grub, emit=self.emit,
        )  # fmt: skip
        await self.netboot.start()
        self._stack.push_async_callback(self.netboot.close)
        watch = LinkWatch(self.config.interface, self._link_changed)
        await watch.start()
        self._stack.push_async_callback(watch.close)

    def hang_up(self) -> None:
        """SIGHUP: take over the configuration as it is now, or say why not."""
        from pxed.manage.config import reload_configuration

        self.notifier.reloading()
        try:
            found = reload_configuration(self)
        except PxedError as error:
            log.error("the configuration was not reloaded: %s", error)
            return
        finally:
            self.notifier.ready(self.says())
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
        if link.deaf:
            self.alarm(link.deaf, link.deaf)
        if not link.addresses:
            text = f"{link.name} has no IPv4 address: DHCP and TFTP wait for one"
            self.emit(Event(Kind.ALARM, None, time.time(), {"text": text}))
            return
        if self.netboot.update(link):
            log.info("%s has a new address: %s", link.name, link.address())

    def _report_path(self, mac: Mac) -> Path:
        client = self.clients.get(mac)
        return self.midlayers.report_path(client.mac if client is not None else mac)

    # The server as others see it

    @property
    def config(self) -> Config:
        """What it runs with; a reload replaces it."""
        return self.choice.config

    @config.setter
    def config(self, new: Config) -> None:
        self.choice.config = self.netboot.config = new

    @property
    def images(self) -> dict[str, Image]:
        """What booting clients get, by class."""
        return self.choice.images

    @property
    def clients(self) -> Clients:
        return self.choice.clients

    @property
    def policy(self) -> Policy:
        """The DHCP server's decisions."""
        return self.netboot.policy

    def says(self) -> str:
        """One line for the service manager."""
        return f"serving {self.config.interface} ({self.link.address()})"

    async def stop(self) -> None:
        """Stop every service in reverse order, sync and save; stopping twice is fine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()

    def emit(self, event: Event) -> None:
        """Take an event from any protocol."""
        self.lives.emit(event)
        if event.kind in BINDING and event.mac is not None:
            client = self.clients.get(event.mac)
            if client is not None:
                self.preparing.bind(client)

    def probe(self) -> Probe:
        """A simulated client for the doctor."""
        return Probe(self.policy, self.netboot.open_file, self.target, self.netboot.has_url)

    def use_images(self, classes: Mapping[str, Class] | None = None) -> dict[str, Image]:
        """Look up again what booting clients get; all or nothing. UsageError if one is missing."""
        before = self.images
        found = self.choice.use(classes)
        try:
            self.choice.check(classes)
            if found != before:
                self.exports.show_to_all(found)
        except PxedError:
            self.choice.images = before
            raise
        return found

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
        checkpoint, copy = 0.0, time.monotonic() + CHECKPOINT
        while True:
            await asyncio.sleep(TICK)
            self.lives.tick(time.time())
            self._look_at_drops(time.time())
            if time.monotonic() > checkpoint:
                checkpoint = time.monotonic() + CHECKPOINT
                await self._look_at_disk()
            if time.monotonic() > copy:
                copy = time.monotonic() + COPY
                await self._copy_database()

    def _look_at_drops(self, now: float) -> None:
        """Whether the event loop cannot keep up with what arrives."""
        boot = self.netboot
        for port, lost in (("67/udp", boot.dhcp.dropped), ("69/udp", boot.tftp.dropped)):
            if (text := self._overruns.look(port, lost, now)) is not None:
                self.emit(Event(Kind.ALARM, None, now, {"text": text}))

    async def _be_watched(self) -> None:
        """Tell the service manager that the loop turns and that every worker is there."""
        while True:
            if self.aoe.running:
                self.notifier.alive()
            await asyncio.sleep(self.notifier.watchdog)

    async def _look_at_disk(self) -> None:
        """What would hold up the loop: bring the database up to date, see what room there is."""
        try:
            await self.blocking(self.midlayers.refuse_read_only)
            self.disk = ""
            await self.keeper.checkpoint()
            await self.blocking(self.midlayers.refuse_if_full)
        except ReadOnlyDisk as error:
            self.disk = str(error)
            self.alarm("disk", f"nothing is kept any more: {error}")
        except NoRoom as error:
            self.alarm("no-room", str(error))
        except PxedError as error:
            log.error("%s", error)

    async def _copy_database(self) -> None:
        try:
            await self.keeper.copy()
        except HostError as error:
            self.alarm("store", str(error))

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

    async def saved(self, changed: Iterable[Client]) -> None:
        """A person changed these: they are in the kernel's hands when this returns."""
        await self.keeper.saved(changed)


def _was_serving(state_dir: Path) -> bool:
    """Whether a server has stopped here a moment ago: then nobody else has come to our address."""
    with contextlib.suppress(OSError):
        return 0 <= time.time() - (state_dir / STOPPED).stat().st_mtime < RESTART
    return False


def run(config: Config, reread: Callable[[], Config] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; PxedError if it cannot start. SIGHUP: take over ``reread``."""
    raise_file_limit()
    uvloop.run(_serve(config, reread))


async def _serve(config: Config, reread: Callable[[], Config] | None) -> None:
    app = App(config, reread)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, app.hang_up)
    await app.start()
    privileges.step_back()
    # What is known now stays: no collection need look at it again and hold up the loop.
    gc.collect()
    gc.freeze()
    log.info("%s %s", app.says(), privileges.describe())
    app.notifier.ready(app.says())
    try:
        await stopping.wait()
    finally:
        await _stop(app)


async def _stop(app: App) -> None:
    """Stop in order, and say how it went."""
    began = time.monotonic()
    text = "stopping: answering what has arrived, syncing what was written"
    log.info("%s", text)
    app.notifier.stopping(text)
    aoe, exports = app.aoe, app.exports
    with contextlib.suppress(OSError):
        (app.config.state_dir / STOPPED).touch()
    await app.stop()
    log.info(
        "stopped after %.2f s: %d AoE frames heard, %d answers sent, %d writable devices synced",
        time.monotonic() - began, aoe.counters["frames"].sum(), aoe.counters["replies"].sum(),
        exports.synced,
    )  # fmt: skip
