"""The journal of leases: what a killed server had promised is known to the next one."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed import journal as module
from pxed.clients import Clients
from pxed.dhcp.lease import Lease, State
from pxed.errors import HostError
from pxed.eventlog import EventLog
from pxed.journal import Journal
from pxed.keeper import Keeper
from pxed.mac import Mac
from pxed.store import Batch, Store

A = Mac("52:54:00:00:00:0a")


def lease(tail: int, state: State = State.BOUND, expires: float = 600.25) -> Lease:
    return Lease(A, IPv4Address(f"10.77.0.{tail}"), state, expires)


def test_what_was_added_is_there_without_a_close(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    first.add(lease(50))
    first.add(lease(51, State.DECLINED))
    assert Journal(tmp_path / "j").leases == [lease(50), lease(51, State.DECLINED)]


def test_the_last_word_on_an_address_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(lease(50))
    journal.add(lease(50, State.RELEASED))
    assert Journal(tmp_path / "j").leases == [lease(50, State.RELEASED)]


@pytest.mark.parametrize("rubbish", [b"\0" * 40, b"52:54:00:00:00:0a 10.77", b"\xff\xfe x y z\n"])
def test_a_damaged_line_costs_nothing_but_itself(tmp_path: Path, rubbish: bytes) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(lease(50))
    with (tmp_path / "j").open("ab") as file:
        file.write(b"\n" + rubbish)
    assert Journal(tmp_path / "j").leases == [lease(50)]


def test_what_is_in_the_database_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(lease(50))
    journal.keep([])
    assert journal.size == 0
    journal.add(lease(51))
    assert Journal(tmp_path / "j").leases == [lease(51)]


def test_a_large_one_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 200)
    journal = Journal(tmp_path / "j")
    for _ in range(10):
        journal.add(lease(50))
    journal.keep([lease(51)])
    journal.add(lease(52))
    assert Journal(tmp_path / "j").leases == [lease(51), lease(52)]
    assert os.listdir(tmp_path) == ["j"]


def test_one_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    with pytest.raises(HostError, match=r"/j: Is a directory"):
        Journal(tmp_path / "j")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 (it polls the disk)
            await asyncio.sleep(0.01)


@contextmanager
def keeping(folder: Path, failures: list[str]) -> Iterator[tuple[Keeper, Store]]:
    with Store(folder / "db") as store:
        journal = Journal(folder / "j")
        yield Keeper(store, Clients(), EventLog(), 100, failures.append, journal), store


def test_the_keeper_has_a_lease_in_the_kernels_hands_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        with keeping(tmp_path, []) as (keeper, store):
            keeper.leased(lease(50))
            assert store.leases() == []  # the database is later
            with keeping(tmp_path, []) as (after, _):  # as after kill -9
                assert after.known_leases() == [lease(50)]
            await until(lambda: not (tmp_path / "j").stat().st_size)
            assert store.leases() == [lease(50)]

    asyncio.run(work())


def test_a_lease_that_the_database_refused_is_tried_again(tmp_path: Path) -> None:
    failures: list[str] = []

    async def work() -> None:
        with keeping(tmp_path, failures) as (keeper, store):
            save = store.save

            def refuse(batch: Batch, keep: int) -> None:
                raise HostError("disk full")

            store.save = refuse  # type: ignore[method-assign]
            keeper.leased(lease(50))
            await until(lambda: bool(failures))
            assert failures == ["disk full"]
            assert (tmp_path / "j").stat().st_size > 0
            store.save = save  # type: ignore[method-assign]
            keeper.leased(lease(51))
            both = {lease(50).ip, lease(51).ip}
            await until(lambda: {each.ip for each in store.leases()} == both)

    asyncio.run(work())


def test_the_keepers_end_saves_all_of_it(tmp_path: Path) -> None:
    async def work() -> None:
        with keeping(tmp_path, []) as (keeper, store):
            keeper.leased(lease(50))
            keeper.close()
            assert store.leases() == [lease(50)]
            assert (tmp_path / "j").stat().st_size == 0

    asyncio.run(work())
