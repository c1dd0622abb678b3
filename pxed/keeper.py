"""Brings what changes to the database without holding up the event loop.

Changes are collected for a moment, turned into rows in the loop, a bounded number at a time, and
written by one thread. What a person changed is in the kernel's hands before the answer goes out.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from pxed.clients import Clients
from pxed.dhcp.lease import Lease
from pxed.errors import HostError
from pxed.eventlog import EventLog
from pxed.journal import Journal
from pxed.mac import Mac
from pxed.seat import Client
from pxed.store import Batch, Store
from pxed.threads import Pool

log = logging.getLogger("pxed.store")

SOON = 0.02  # seconds that changes are collected for
AT_ONCE = 50  # clients whose rows are made in one turn of the loop
HEARD_AT_ONCE = 10  # those of which nothing is new but when they were heard
EVENTS_AT_ONCE = 200


class Keeper:
    """Saves clients, leases and events; ``failed`` is told in one line when the disk refuses.

    ``keep``: how many events the database holds. What is in ``journal`` goes to the database first.
    """

    def __init__(
        self, store: Store, clients: Clients, events: EventLog, keep: int,
        failed: Callable[[str], None], journal: Journal,
    ) -> None:  # fmt: skip
        self.keep = keep
        self._store = store
        self._clients = clients
        self._events = events
        self._failed = failed
        self._dirty: set[Mac] = set()
        self._heard: set[Mac] = set()
        self._gone: set[Mac] = set()
        self._refused: Batch | None = None  # by the disk: first of all it is tried again
        self._leases: dict[IPv4Address, Lease] = {lease.ip: lease for lease in journal.leases}
        self._journal = journal
        self._thread = Pool(1, "store")
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None

    def changed(self, client: Client) -> None:
        """Save this client before long."""
        self._dirty.add(client.mac)
        self._gone.discard(client.mac)
        self.soon()

    def forgotten(self, client: Client) -> None:
        """This client is no more: delete its row before long."""
        self._dirty.discard(client.mac)
        self._heard.discard(client.mac)
        self._gone.add(client.mac)
        self.soon()

    def heard(self, client: Client) -> None:
        """Nothing is new of this client but the time: save it when there is time."""
        self._heard.add(client.mac)

    def leased(self, lease: Lease) -> None:
        """Save this lease; it outlives a kill of the server when this returns."""
        self._leases[lease.ip] = lease
        try:
            self._journal.add(lease)
        except HostError as error:
            self._failed(str(error))
        self.soon()

    def known_leases(self) -> list[Lease]:
        """Every lease that was saved, or that a server which was killed had still to save."""
        return list(({lease.ip: lease for lease in self._store.leases()} | self._leases).values())

    def soon(self) -> None:
        """Save what is new, the events too, in a moment."""
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(SOON, self._begin)

    async def saved(self, changed: Iterable[Client]) -> None:
        """Return when these are in the kernel's hands; HostError if the disk refuses."""
        self._dirty |= {client.mac for client in changed}
        while True:
            if self._writing is None:
                self._begin()
            if self._writing is None:
                return
            writing = self._writing
            # A write that has just ended: to await it would not let its callback, and nobody, run.
            await asyncio.wait((writing,))
            writing.result()
            if not (self._dirty or self._gone or self._refused):
                return

    async def checkpoint(self) -> None:
        """Bring the database's main file up to date, and try again what was refused; HostError."""
        if self._refused is not None:
            self.soon()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.checkpoint)

    async def copy(self) -> None:
        """Keep a copy of the database beside it; HostError, also if it is found damaged."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.copy)

    def close(self) -> None:
        """Save everything that is left, here and now; closing twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._thread.shutdown()
        self._dirty |= self._heard
        while batch := self._batch(1 << 30):
            try:
                self._store.save(batch, self.keep)
            except HostError as error:
                log.error("%s: the last changes are lost", error)
                self._leases = {lease.ip: lease for lease in batch.of_leases} | self._leases
                break
        self._forget_journal()
        self._journal.close()

    def _forget_journal(self) -> None:
        """What is in the database need not be in the journal."""
        if self._journal.size:
            refused = self._refused.of_leases if self._refused is not None else ()
            left = {lease.ip: lease for lease in refused} | self._leases
            try:
                self._journal.keep(left.values())
            except HostError as error:
                self._failed(str(error))

    def _batch(self, limit: int) -> Batch | None:
        if self._refused is not None:
            batch, self._refused = self._refused, None
            return batch
        macs = [self._dirty.pop() for _ in range(min(len(self._dirty), limit))]
        spare = min(len(self._heard), max(limit * HEARD_AT_ONCE // AT_ONCE, 1))
        macs += [self._heard.pop() for _ in range(spare)]
        clients = [client for mac in macs if (client := self._clients.get(mac)) is not None]
        leases = list(self._leases.values())
        self._leases.clear()
        events = self._events.unsaved(EVENTS_AT_ONCE)
        gone, self._gone = self._gone, set()
        if not (clients or leases or events or gone):
            return None
        return self._store.batch(clients, leases, events, gone)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        batch = self._batch(AT_ONCE)
        if batch is not None:
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._thread, self._store.save, batch, self.keep)
            self._writing.add_done_callback(lambda done: self._written(done, batch))

    def _written(self, done: "asyncio.Future[None]", batch: Batch) -> None:
        self._writing = None
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            # Tried again with the next change or check; a full disk must not become a busy loop.
            self._refused = batch
            self._failed(str(error))
            return
        self._forget_journal()
        if self._dirty or self._leases or self._gone or self._events.has_unsaved:
            self.soon()
