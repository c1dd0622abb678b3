"""What changes reaches the database in order, also when the disk refuses for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pxed.clients import Clients
from pxed.dhcp.lease import Lease, State
from pxed.errors import HostError
from pxed.eventlog import EventLog
from pxed.journal import Journal
from pxed.keeper import Keeper
from pxed.mac import Mac
from pxed.seat import Client
from pxed.store import Batch, Store

M1, M2 = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")


class Refusing(Store):
    """A database on a disk that refuses the next ``refuse`` writes."""

    refuse = 0

    def save(self, batch: Batch, keep: int) -> None:
        if self.refuse:
            self.refuse -= 1
            raise HostError("the disk is full")
        super().save(batch, keep)


class Bench:
    def __init__(self, path: Path) -> None:
        self.store = Refusing(path)
        self.clients = Clients()
        self.log = EventLog()
        self.said: list[str] = []
        journal = Journal(path.with_name("leases"))
        self.keeper = Keeper(self.store, self.clients, self.log, 100, self.said.append, journal)

    def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        async def all_of_it() -> None:
            try:
                await work()
            finally:
                self.keeper.close()

        try:
            asyncio.run(all_of_it())
        finally:
            self.store.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "pxed.db")


def saved(path: Path) -> list[Mac]:
    with Store(path) as store:
        return [client.mac for client in store.clients()]


def test_a_person_is_told_that_the_disk_refused_and_nothing_is_lost(
    bench: Bench, tmp_path: Path
) -> None:
    async def work() -> None:
        bench.store.refuse = 1
        bench.keeper.leased(Lease(M1, IPv4Address("10.0.0.1"), State.BOUND, 9.0))
        bench.log.add({"time": 1.0, "kind": "boot", "mac": M1})
        with pytest.raises(HostError, match="disk is full"):
            await bench.keeper.saved([bench.clients.add(M1)])
        assert bench.said == ["the disk is full"]
        await bench.keeper.checkpoint()
        await asyncio.sleep(0.2)

    bench.run(work)
    assert saved(tmp_path / "pxed.db") == [M1]
    with Store(tmp_path / "pxed.db") as store:
        assert [lease.mac for lease in store.leases()] == [M1]
        assert [entry["kind"] for entry in store.events()] == ["boot"]


def test_who_is_forgotten_while_a_write_is_on_its_way_does_not_come_back(
    bench: Bench, tmp_path: Path
) -> None:
    async def work() -> None:
        for mac in (M1, M2):
            bench.keeper.changed(bench.clients.add(mac))
        await asyncio.sleep(0.021)  # its write may be on its way now
        client = bench.clients.get(M1)
        assert isinstance(client, Client)
        bench.clients.forget(client)
        bench.keeper.forgotten(client)
        await bench.keeper.saved(())

    bench.run(work)
    assert saved(tmp_path / "pxed.db") == [M2]


@pytest.mark.timeout(120)
def test_who_asks_as_a_write_ends_does_not_hold_up_the_loop(bench: Bench, tmp_path: Path) -> None:
    async def work() -> None:
        first = asyncio.create_task(bench.keeper.saved([bench.clients.add(M1)]))
        await asyncio.sleep(0)
        bench.keeper._thread.submit(int).result()  # the write before it has ended
        await asyncio.sleep(0)  # and the loop knows, but the keeper does not yet
        await bench.keeper.saved([bench.clients.add(M2)])
        await first

    bench.run(work)
    assert saved(tmp_path / "pxed.db") == [M1, M2]


def test_who_is_forgotten_and_seen_again_is_there(bench: Bench, tmp_path: Path) -> None:
    async def work() -> None:
        client = bench.clients.add(M1)
        await bench.keeper.saved([client])
        bench.clients.forget(client)
        bench.keeper.forgotten(client)
        await bench.keeper.saved([bench.clients.add(M1)])

    bench.run(work)
    assert saved(tmp_path / "pxed.db") == [M1]


def test_a_database_that_is_found_damaged_does_not_replace_its_good_copy(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "pxed.db"

    async def work() -> None:
        for number in range(200):
            bench.clients.add(Mac(f"52:54:00:00:01:{number:02x}"))
        await bench.keeper.saved(bench.clients)
        await bench.keeper.copy()
        await bench.keeper.checkpoint()

    bench.run(work)
    good = (tmp_path / "pxed.db.copy").read_bytes()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"rubbish" * 2000)
    store = Store(path)
    with pytest.raises(HostError, match=r"move it away .* pxed\.db\.copy|pxed\.db\.copy"):
        store.copy()
    store.close()
    assert (tmp_path / "pxed.db.copy").read_bytes() == good
    (tmp_path / "pxed.db.copy").rename(path)
    path.with_name("pxed.db-wal").unlink(missing_ok=True)
    assert len(saved(path)) == 200
