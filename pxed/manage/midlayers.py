"""Midlayers, as people manage them: seen, backed up, restored, resized, cleared away."""

import time

from pxed import selector
from pxed.body import Body
from pxed.choice import in_use
from pxed.config import parse_midlayer_size
from pxed.control import Call, Json
from pxed.errors import UsageError
from pxed.mac import Mac, parse_mac
from pxed.manage.core import Core
from pxed.midlayers import Layer
from pxed.seat import Client

_DAY = 86400.0


class ManageMidlayers:
    """Every method is a route; what would change a midlayer in use is refused."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def list(self, _call: Call) -> Json:
        layers = await self._core.blocking(self._core.midlayers.layers)
        free = await self._core.blocking(self._core.midlayers.free)
        return {
            "midlayers": [self._describe(layer) for layer in layers],
            "free": free,
            "keep_free": self._core.midlayers.keep_free,
        }

    async def backup(self, call: Call) -> Json:
        body = Body(call.body, "client", "file")
        client, file = self._idle(body), body.path("file")
        if file is None:
            raise UsageError("file: missing")
        taken = await self._core.blocking(self._core.midlayers.backup, client.mac, file)
        return {"text": f"the midlayer of {client.name or client.mac} is in {file}", "bytes": taken}

    async def restore(self, call: Call) -> Json:
        """Put back a backup, or with ``old`` the midlayer from before the last reset or restore."""
        body = Body(call.body, "client", "file", "old")
        client, file = self._idle(body), body.path("file")
        if (file is None) is not body.switch("old"):
            raise UsageError("give either a file or old")
        await self._core.blocking(self._core.midlayers.restore, client.mac, file)
        self._let_go(client)
        return {"text": f"{client.name or client.mac} gets it at its next boot"}

    async def resize(self, call: Call) -> Json:
        body = Body(call.body, "client", "size")
        try:
            size = parse_midlayer_size(body.text("size"))
        except ValueError as error:
            raise UsageError(f"size {body.text('size')!r}: {error}") from None
        client = self._idle(body)
        await self._core.blocking(self._core.midlayers.resize, client.mac, size)
        self._let_go(client)
        return {"text": f"{client.name or client.mac} has {body.text('size')} at its next boot"}

    async def unused(self, call: Call) -> Json:
        """What ``remove`` could take: of machines unseen for ``days``, and the old ones."""
        try:
            days = int(call.query.get("days", "90"))
        except ValueError:
            raise UsageError("days: must be a whole number") from None
        if days < 1:
            raise UsageError("days: must be at least 1")
        before = time.time() - days * _DAY
        found = []
        for layer in await self._core.blocking(self._core.midlayers.layers):
            client = self._core.clients.get(layer.mac)
            used = client is not None and in_use(client) and client.state != "lost"
            seen = max(client.last_seen if client is not None else 0.0, layer.changed)
            if not used and seen < before:
                found.append(self._describe(layer))
        return {"midlayers": found, "days": days}

    async def remove(self, call: Call) -> Json:
        """Delete the midlayers of these machines for good; ``old``: only those from before."""
        body = Body(call.body, "macs", "old")
        try:
            macs = [parse_mac(each) for each in body.texts("macs")]
        except ValueError as error:
            raise UsageError(str(error)) from None
        old = body.switch("old")
        for mac in macs:
            client = self._core.clients.get(mac)
            if client is not None and not old:
                self._refuse_in_use(client)
        freed = 0
        for mac in macs:
            freed += await self._core.blocking(self._remove, mac, old)
        return {"removed": len(macs), "freed": freed}

    def _remove(self, mac: Mac, old: bool) -> int:
        if not old:
            self._core.exports.close_private(mac)
        return self._core.midlayers.remove(mac, only_old=old)

    def _idle(self, body: Body) -> Client:
        client = selector.one(self._core.clients, body.text("client"))
        self._refuse_in_use(client)
        return client

    def _refuse_in_use(self, client: Client) -> None:
        if in_use(client):
            who = client.name or client.mac
            raise UsageError(
                f"{who} is {client.state.value} and may be using its midlayer: switch it off"
                + (f", and pxed client forget {who} if it is" if client.state == "lost" else "")
            )

    def _let_go(self, client: Client) -> None:
        """The file behind the export is another one now."""
        client.damage = ""
        self._core.exports.drop(client.all_macs)
        self._core.exports.close_private(client.mac)

    def _describe(self, layer: Layer) -> Json:
        client = self._core.clients.get(layer.mac)
        if client is None:
            state = "orphan"
        elif client.damaged or layer.state == "damaged":
            state = "damaged"
        elif in_use(client):
            state = "in use"
        else:
            state = layer.state
        return {
            "mac": layer.mac,
            "name": client.name if client is not None else "",
            "size": layer.size,
            "used": layer.used,
            "state": state,
            "old": layer.old,
            "reset": client.fresh if client is not None else False,
            "last_seen": max(client.last_seen if client is not None else 0.0, layer.changed),
        }
