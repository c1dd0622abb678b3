"""What a flood of entries leaves of the others."""

import asyncio
from pathlib import Path
from typing import Any

from pxed.eventlog import EventLog
from pxed.store import Store

ALARM = {"time": 1.0, "kind": "alarm", "mac": None, "text": "frames lost"}


def chatter(number: int) -> dict[str, Any]:
    return {"time": 2.0 + number, "kind": "tftp-read", "mac": None}


def listed(log: EventLog, since: float | None = None) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        return [entry async for entry in log.read(follow=False, since=since)]

    return asyncio.run(read())


def test_an_alarm_outlasts_a_flood() -> None:
    log = EventLog(limit=10)
    log.add(dict(ALARM))
    for number in range(1000):
        log.add(chatter(number))
    found = listed(log)
    assert [entry["id"] for entry in found] == [1, *range(992, 1002)]
    assert found[0]["text"] == "frames lost"
    assert [entry["id"] for entry in listed(log, since=2.0)] == [*range(992, 1002)]


def test_so_many_alarms_are_kept() -> None:
    log = EventLog(limit=10, lasting=3)
    for _ in range(100):
        log.add(dict(ALARM))
    assert [entry["id"] for entry in listed(log)] == [*range(88, 101)]


def test_the_archive_has_each_once() -> None:
    log = EventLog(limit=2)
    for entry in (dict(ALARM), chatter(1), chatter(2)):
        log.add(entry)
    log.archive = lambda since, before: [{"id": 1, **ALARM}]
    assert [entry["id"] for entry in listed(log, since=0.0)] == [1, 2, 3]


def test_the_database_keeps_alarms_longer_too(tmp_path: Path) -> None:
    with Store(tmp_path / "db") as store:
        store.save_events([{"id": 1, **ALARM}], keep=10)
        for first in range(2, 70, 20):
            store.save_events([chatter(n) | {"id": n} for n in range(first, first + 20)], keep=10)
        assert [entry["id"] for entry in store.events()] == [1, *range(72, 82)]
        store.save_events([chatter(200) | {"id": 200}], keep=10)
        assert [entry["id"] for entry in store.events()] == [200]
