"""Clients, as people manage them: names, groups, approval, what they boot, wake-on-LAN."""

import time
from collections.abc import Callable

from pxed import images, orders, selector
from pxed.body import Body
from pxed.choice import in_use
from pxed.control import Call, Json
from pxed.dhcp.classify import RPI_OUIS
from pxed.errors import UsageError
from pxed.events import Event, Kind
from pxed.mac import Mac, parse_mac
from pxed.manage.core import Core
from pxed.net.wake import wake
from pxed.seat import Client

_NOTE = 500
_GROUPS = 32


class ManageClients:
    """Every method is a route: it changes all of the clients that were selected, or none."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def select(self, call: Call) -> Json:
        """Which clients some words mean."""
        chosen = self._select(Body(call.body, "select").texts("select"))
        return {"macs": [client.mac for client in chosen]}

    async def name(self, call: Call) -> Json:
        """Call one client ``name``; empty: take its name away."""
        body = Body(call.body, "client", "name")
        name = body.text("name")
        (client,) = self._select([body.text("client")], create=True)
        override = self._core.config.clients.get(client.mac)
        if override is not None and override.name:
            raise UsageError(f"{client.mac} is named {override.name!r} in the configuration")
        if name:
            selector.check_name(name, "client's name")
            other = next((c for c in self._core.clients if c.name == name), client)
            if other is not client:
                raise UsageError(f"{other.mac} is called {name!r} already")
        before, client.name = client.name, name
        await self._core.saved([client])
        text = f"is called {name}" if name else "has no name"
        return {"done": [{"mac": client.mac, "name": before, "text": text}]}

    async def note(self, call: Call) -> Json:
        body = Body(call.body, "select", "note")
        note = body.text("note")
        if len(note) > _NOTE or not note.isprintable():
            raise UsageError(f"a note is one line of up to {_NOTE} characters")
        chosen = self._select(body.texts("select"), create=True)
        for client in chosen:
            client.note = note
        return await self._done(chosen, "noted")

    async def group(self, call: Call) -> Json:
        body = Body(call.body, "select", "add", "remove")
        add = [selector.check_name(each, "group") for each in body.texts("add")]
        remove = body.texts("remove")
        if not add and not remove:
            raise UsageError("no group is named: give one to add or to remove")
        chosen = self._select(body.texts("select"), create=bool(add))
        wanted = {}
        for client in chosen:
            groups = dict.fromkeys([*client.groups, *add])
            wanted[client.mac] = [group for group in groups if group not in remove]
            if len(wanted[client.mac]) > _GROUPS:
                raise UsageError(f"{client.mac} would be in more than {_GROUPS} groups")
        for client in chosen:
            client.groups = wanted[client.mac]
        return await self._done(
            chosen, "", each=lambda c: f"in {', '.join(c.groups) or 'no group'}"
        )

    async def approve(self, call: Call) -> Json:
        chosen = self._select(Body(call.body, "select").texts("select"), create=True)
        for client in chosen:
            blocked = client.admission == "blocked"
            client.admission = "approved"
            self._core.clients.begin_again(client)
            if blocked:
                self._core.preparing.show_again(client)
        return await self._done(chosen, "may boot")

    async def block(self, call: Call) -> Json:
        """Refuse these at their next boot; with ``now`` they lose their disks at once."""
        body = Body(call.body, "select", "now")
        chosen = self._select(body.texts("select"), create=True)
        cut = body.switch("now")
        for client in chosen:
            client.admission = "blocked"
            if cut or not in_use(client):
                client.image = ""  # pinned to nothing: a restart does not give it its disks back
                self._core.exports.hide(client.all_macs)
        return await self._done(
            chosen, "", each=lambda c: "blocked from its next boot on"
            if in_use(c) and not cut else "blocked",
        )  # fmt: skip

    async def reset(self, call: Call) -> Json:
        """Make a new /config at the next boot; the present one is kept as old until then next."""
        body = Body(call.body, "select", "undo")
        chosen = self._select(body.texts("select"))
        for client in chosen:
            client.fresh = not body.switch("undo")
        text = "keeps its /config" if body.switch("undo") else "gets a new /config at its next boot"
        return await self._done(chosen, text)

    async def boot(self, call: Call) -> Json:
        """Say what these boot from now on, or with ``once`` at their next boot only."""
        body = Body(call.body, "select", "order", "once")
        text = body.text("order")
        order = orders.parse("" if text == "default" else text)
        clients = self._core.clients
        known = {client.mac for client in clients}
        try:
            chosen = self._select(body.texts("select"), create=True)
            for client in chosen:
                self._refuse_what_cannot_be_booted(client, order)
        except UsageError:
            # Who was only named in this order is nobody.
            for client in [each for each in clients if each.mac not in known]:
                clients.forget(client)
            raise
        for client in chosen:
            if body.switch("once"):
                client.once = "" if text == "default" else text
            else:
                client.order = "" if text == "default" else text
        when = "at its next boot" if body.switch("once") else "from its next boot on"
        return await self._done(chosen, f"boots {text or 'default'} {when}")

    async def forget(self, call: Call) -> Json:
        """Forget machines that are off; their midlayers stay until ``pxed midlayer gc``."""
        body = Body(call.body, "select", "force")
        chosen = self._select(body.texts("select"))
        if not body.switch("force"):
            self._refuse_running(chosen, but_lost=True)
        self._forget(chosen)
        await self._core.saved(())
        return _answer([(client, "forgotten") for client in chosen])

    async def join(self, call: Call) -> Json:
        """Make ``macs`` further addresses of one client; with ``part`` they are so no longer."""
        body = Body(call.body, "client", "macs", "part")
        core = self._core
        (client,) = self._select([body.text("client")])
        try:
            macs = [parse_mac(each) for each in body.texts("macs")]
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not macs:
            raise UsageError("no address is named")
        if body.switch("part"):
            self._part(client, macs)
            return await self._done([client], f"has {', '.join(client.all_macs)}")
        others: list[Client] = []
        for mac in dict.fromkeys(macs):
            other = core.clients.get(mac)
            if other is client:
                raise UsageError(f"{mac} is an address of {client.name or client.mac} already")
            if other is not None and other.macs:
                raise UsageError(f"{mac} belongs to {other.name or other.mac}: part it first")
            if other is not None:
                others.append(other)
        self._refuse_running(others)
        self._forget(others)
        for mac in dict.fromkeys(macs):
            core.clients.join(client, mac)
        core.preparing.show_again(client)
        return await self._done([client], f"has {', '.join(client.all_macs)}")

    async def wake(self, call: Call) -> Json:
        """Send a magic packet for every address of these clients."""
        chosen = self._select(Body(call.body, "select").texts("select"), create=True)
        wake(self._core.link, [mac for client in chosen for mac in client.all_macs])
        now = time.time()
        for client in chosen:
            self._core.emit(Event(Kind.WAKE, client.mac, now))
        return _answer([(client, "was sent a wake-up packet") for client in chosen])

    # Inside

    def _select(self, words: list[str], *, create: bool = False) -> list[Client]:
        return selector.choose(self._core.clients, words, create=create)

    async def _done(
        self, chosen: list[Client], text: str, each: Callable[[Client], str] | None = None
    ) -> Json:
        await self._core.saved(chosen)
        return _answer([(client, each(client) if each else text) for client in chosen])

    def _part(self, client: Client, macs: list[Mac]) -> None:
        for mac in macs:
            if mac not in client.macs:
                raise UsageError(
                    f"{mac} is no further address of {client.name or client.mac}: "
                    f"those are {', '.join(client.macs) or 'none'}"
                )
        for mac in dict.fromkeys(macs):
            self._core.clients.part(client, mac)
        self._core.exports.drop(macs)

    def _refuse_running(self, chosen: list[Client], *, but_lost: bool = False) -> None:
        for client in chosen:
            if in_use(client) and not (but_lost and client.state == "lost"):
                who = client.name or client.mac
                raise UsageError(f"{who} is {client.state.value}: switch it off first")

    def _forget(self, chosen: list[Client]) -> None:
        core = self._core
        for client in chosen:
            core.keeper.forgotten(client)
            core.clients.forget(client)
            core.exports.drop(client.all_macs)
            core.exports.close_private(client.mac)
            for mac in client.all_macs:
                core.watch.forget(mac)

    def _refuse_what_cannot_be_booted(self, client: Client, order: orders.Order) -> None:
        core, class_name = self._core, client.class_name
        if not client.last_seen and client.mac[:8] in RPI_OUIS and "rpi" in core.config.classes:
            class_name = "rpi"  # it was never heard, and its address says what it is
        if class_name not in core.config.classes:
            raise UsageError(f"{client.mac}: its class {class_name} is not served here")
        if order.image:
            images.find(core.config.images_dir, order.image, class_name)
        elif order.mode == "provision":
            try:
                core.choice.usual_image(client.mac, class_name).check_installable()
            except UsageError as error:
                raise UsageError(f"{client.name or client.mac}: {error}") from None


def _answer(done: list[tuple[Client, str]]) -> Json:
    return {"done": [{"mac": c.mac, "name": c.name, "text": text} for c, text in done]}
