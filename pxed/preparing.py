"""Gives each machine its own devices and its view: midlayers made in threads, exports, restarts."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from pxed import images, provision
from pxed.choice import Choice, in_use
from pxed.errors import HostError, PxedError, ReadOnlyDisk
from pxed.events import Event, Kind
from pxed.exports import Exports
from pxed.former import Former
from pxed.mac import Mac
from pxed.midlayers import Midlayers, NoRoom, Prepared
from pxed.seat import Client, State
from pxed.threads import Pool
from pxed.watch import Watch, erase_report

log = logging.getLogger("pxed")

THREADS = 4  # that clone midlayers: they wait for the disk, not for the processor
MENDERS = 2  # that mend them: what is in one is its client's, and so is how long that takes
REFRESH_SOON = 0.02
QUIET = 1.0  # seconds of silence after which a machine that asks to boot is no longer running

BINDING = frozenset((Kind.ACK, Kind.TFTP_READ, Kind.HTTP_DONE))
"""What shows that a machine goes on with the boot whose DISCOVER we heard; a site's own DHCP server
may have given it its lease."""


class Preparing:
    """``emit`` and ``alarm`` hear how it went, ``keep`` is told of each client that changed."""

    def __init__(
        self, choice: Choice, midlayers: Midlayers, exports: Exports, watch: Watch, *,
        emit: Callable[[Event], None], alarm: Callable[[str, str], None],
        keep: Callable[[Client], None],
    ) -> None:  # fmt: skip
        self._choice = choice
        self._midlayers = midlayers
        self._exports = exports
        self._watch = watch
        self._former = Former(choice.config.images_dir)
        self._emit = emit
        self._alarm = alarm
        self._keep = keep
        self._threads = Pool(THREADS, "midlayer")
        self._menders = Pool(MENDERS, "mend")
        self._busy: dict[Mac, asyncio.Event] = {}
        self._next: set[Mac] = set()
        self._refreshing: asyncio.TimerHandle | None = None
        self._waiting: dict[Mac, images.Image] = {}
        self._bound: set[Mac] = set()
        self._shown: set[Mac] = set()

    def close(self) -> None:
        """Wait for what is being prepared; closing twice is fine."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._threads.shutdown()
        self._menders.shutdown()

    # A boot

    async def prepare(self, client: Client, since: float) -> None:
        """Midlayer and view of a client that has begun to boot (M9).

        One at a time for each client, and one that waits: however often it begins, it costs the
        others no more.
        """
        mac = client.mac
        self._begin(client)
        while (busy := self._busy.get(mac)) is not None:
            if mac in self._next:
                return  # the one that waits will find what we would
            self._next.add(mac)
            try:
                await busy.wait()
            finally:
                self._next.discard(mac)
        self._busy[mac] = asyncio.Event()
        try:
            await self._prepare(client, since)
        finally:
            self._busy.pop(mac).set()

    async def _prepare(self, client: Client, since: float) -> None:
        mac = client.mac
        try:
            image = self._choice.image_for(client)
            client.mode = self._choice.mode_of(mac, client.class_name)
            if client.mode == "local":
                client.image = ""
                return
            if client.mode == "provision":
                image.check_installable()
            made = Prepared(False)
            if client.mode == "diskless":
                made = await self._make_private(client)
            else:
                await self._make_orders(client, image)
            client.image, client.damage = str(image), made.damage
            if self._must_wait(client):
                self._waiting[mac] = image
            else:
                self._show(client, image)
            self.refresh_soon()
            self._keep(client)
        except (PxedError, KeyError) as error:
            why = str(error)
            if isinstance(error, KeyError):
                why = f"there is no image for it: configure [class.{client.class_name}]"
            self._emit(Event(Kind.MIDLAYER_FAILED, mac, time.time(), {"why": why}))
            log.error("%s: cannot prepare its devices: %s", mac, why)
            if isinstance(error, NoRoom):
                self._alarm("no-room", str(error))
            return
        now = time.time()
        detail = {"path": str(self._midlayers.path(mac)), "seconds": round(now - since, 6),
                  "new": made.new, "checked": made.checked}  # fmt: skip
        self._emit(Event(Kind.MIDLAYER_READY, mac, now, detail))

    # Bound to the lease's transaction, where that is asked for

    def _must_wait(self, client: Client) -> bool:
        """Whether its own devices appear only when it has taken its lease.

        Not those of a machine that has them already: a made-up DISCOVER must not take them away.
        """
        if not self._choice.config.security.bind_boot or client.mac in self._shown:
            return False
        return client.mac not in self._bound

    def _begin(self, client: Client) -> None:
        """A boot begins: nothing is bound to it yet."""
        self._bound.discard(client.mac)
        self._waiting.pop(client.mac, None)

    def bind(self, client: Client) -> None:
        """The boot that we prepared has taken its lease, or fetched its boot file."""
        self._bound.add(client.mac)
        if (image := self._waiting.pop(client.mac, None)) is not None:
            self._show(client, image)
            self.refresh_soon()

    def unbind(self, client: Client) -> None:
        """Its boot failed: with ``bind_boot`` its own devices go until the next."""
        self._bound.discard(client.mac)
        if self._choice.config.security.bind_boot and client.mac in self._shown:
            self._shown.discard(client.mac)
            self._exports.drop(client.all_macs)
            self.refresh_soon()

    async def _make_private(self, client: Client) -> Prepared:
        """The files behind a client's own devices; a file system that is damaged is not shown."""
        mac, fresh = client.mac, client.fresh
        override = self._choice.config.clients.get(mac)
        size = override.size if override else None
        # It may not be booting at all, whatever its DISCOVER says: then nobody else may write.
        quiet = self._watch.silence(client.all_macs, time.monotonic_ns()) > QUIET

        def work() -> Prepared:
            check = self._choice.config.midlayer.check and quiet
            if fresh or client.damage or not self._exports.has_layer(mac):
                self._let_go(mac)
            path, refused = self._midlayers.path(mac), None
            try:
                made = self._midlayers.prepare(mac, size, fresh=fresh, check=check)
            except ReadOnlyDisk as error:
                # What it holds can be read, and the report device is in memory.
                made = refused = Prepared(False, "read-only", str(error))
                self._let_go(mac)
            finally:
                report = self._midlayers.report_path(mac)
                # On a full disk what cannot be written is a hole, which says nothing already.
                former = self._former.words() if self._choice.config.midlayer.reclaim else b""
                with contextlib.suppress(OSError):
                    erase_report(report, former)
            layer = path if refused is None or (path.exists() and not fresh) else None
            self._exports.open_private(mac, layer, report, writable=refused is None)
            return made

        loop = asyncio.get_running_loop()
        pool = self._threads
        if quiet and await loop.run_in_executor(pool, self._midlayers.is_unclean, mac):
            pool = self._menders
        try:
            made = await loop.run_in_executor(pool, work)
        except NoRoom:
            raise
        except PxedError as error:
            if not self._midlayers.exists(mac):
                raise
            self._let_go(mac)
            self._exports.open_private(mac, None, self._midlayers.report_path(mac))
            self._alarm(mac, f"{mac}: its midlayer needs a person, it boots without: {error}")
            return Prepared(False, "damaged", str(error))
        client.fresh = client.fresh and bool(made.damage)
        return made

    def _let_go(self, mac: Mac) -> None:
        """Its devices are opened anew; what a disk refused to take is lost, whoever says so."""
        try:
            self._exports.close_private(mac)
        except HostError as error:
            log.error("%s: %s", mac, error)

    async def _make_orders(self, client: Client, image: images.Image) -> None:
        """For an installer: a report device that begins with what it is to do, and no /config."""
        mac = client.mac
        text = provision.orders(self._choice.policy_of(client), image.released)

        def work() -> None:
            self._let_go(mac)
            self._midlayers.prepare_report(mac)
            report = self._midlayers.report_path(mac)
            erase_report(report, text)
            self._exports.open_private(mac, None, report)

        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _show(self, client: Client, image: images.Image, *, exists: bool = False) -> None:
        mac = client.mac
        if client.mode == "provision":
            report = self._midlayers.report_path(mac)
            if not self._exports.has_private(mac) and report.exists():
                self._exports.open_private(mac, None, report)
        elif not self._exports.has_private(mac) and (exists or self._midlayers.exists(mac)):
            layer = None if client.damage else self._midlayers.path(mac)
            self._exports.open_private(mac, layer, self._midlayers.report_path(mac))
        self._exports.show(client.all_macs, client.class_name, image)
        self._shown.add(mac)

    def drop(self, client: Client) -> None:
        """A stranger that is forgotten: it never used its devices, so they go."""
        self._begin(client)
        self._shown.discard(client.mac)
        self._exports.drop(client.all_macs)
        close = self._exports.take_private(client.mac)
        self._watch.forget(client.mac)
        try:
            # Here and now: it may ask again in a moment, and then gets new ones.
            self._midlayers.remove(client.mac)
        except PxedError as error:
            log.error("%s: %s", client.mac, error)
        self._threads.submit(close)
        self.refresh_soon()

    # Views

    def restore_all(self) -> None:
        """Clients known from before must not notice the restart: the same views at once."""
        present, known = self._midlayers.present(), dict[str, images.Image]()
        for client in self._choice.clients:
            provisions = client.mode == "provision" and in_use(client)
            if client.mac in present or provisions or client.admission == "blocked":
                self._restore(client, known)
        self._watch.refresh()
        for client in self._choice.clients:
            if client.in_boot:  # it may have said that it runs as the server was killed
                self._watch.unread(client.mac, client.boot_started)

    def _restore(self, client: Client, known: dict[str, images.Image] | None = None) -> None:
        """``known``: images that were looked up before, if its files are known to be there."""
        if client.admission == "blocked" and not (client.image and in_use(client)):
            self._exports.hide(client.all_macs)
            return
        if (
            client.state in (State.SEEN, State.LOCAL)
            or client.class_name not in self._choice.images
            or (self._choice.config.security.bind_boot and not in_use(client))
        ):
            return
        try:
            image = (known or {}).get(client.image) or self._choice.pinned(client)
            if image is not None and (known is not None or self._midlayers.exists(client.mac)):
                self._show(client, image, exists=known is not None)
                if known is not None:
                    known[str(image)] = image
        except PxedError as error:
            log.error("%s: its view cannot be restored: %s", client.mac, error)

    def show_again(self, client: Client) -> None:
        """Its addresses or its files were changed by a person: give it the view that is right."""
        self._exports.drop(client.all_macs)
        self._restore(client)
        self.refresh_soon()

    def refresh_soon(self) -> None:
        """One look at the target's rows serves all clients whose views have just changed."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().call_later(REFRESH_SOON, self._refresh)

    def _refresh(self) -> None:
        self._refreshing = None
        self._watch.refresh()
