"""The control socket and its client, with a stand-in for the application behind it."""

import asyncio
import json
import shutil
import stat
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed.control import Call, Control, ControlClient, Json, Route, Stream
from pxed.errors import HostError, UsageError
from pxed.eventlog import EventLog

MAC = "52:54:00:00:00:01"


class Stand:
    """Knows one client; the log holds one entry."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.events.add({"time": 1.0, "kind": "discover", "mac": MAC})

    def status(self) -> dict[str, Any]:
        return {"interface": "eth0"}

    def client_list(self) -> list[dict[str, Any]]:
        return [{"mac": MAC}]

    def client_show(self, mac: str) -> dict[str, Any] | None:
        return {"mac": mac} if mac == MAC else None


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    loop = asyncio.new_event_loop()
    control = Control(Stand(), path)
    loop.run_until_complete(control.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield path
    asyncio.run_coroutine_threadsafe(control.close(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_status_is_answered(socket_path: Path) -> None:
    assert ControlClient(socket_path).get("/v1/status") == {"interface": "eth0"}


def test_one_client_is_shown(socket_path: Path) -> None:
    assert ControlClient(socket_path).get(f"/v1/clients/{MAC}") == {"mac": MAC}


def test_an_unknown_client_is_a_usage_error(socket_path: Path) -> None:
    with pytest.raises(UsageError, match="was ever seen"):
        ControlClient(socket_path).get("/v1/clients/52:54:00:00:00:99")


def test_a_bad_mac_is_a_usage_error(socket_path: Path) -> None:
    with pytest.raises(UsageError, match="not a MAC address"):
        ControlClient(socket_path).get("/v1/clients/nonsense")


def test_events_come_as_lines(socket_path: Path) -> None:
    (entry,) = ControlClient(socket_path).follow("/v1/events")
    assert entry["kind"] == "discover"


def test_only_root_and_its_group_may_connect(socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660


def test_no_server_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="pxed serve"):
        ControlClient(tmp_path / "none.sock").get("/v1/status")


def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    async def both() -> None:
        path = tmp_path / "control.sock"
        path.touch()
        control = Control(Stand(), path)
        await control.start()
        await control.close()
        await control.close()
        assert not path.exists()

    asyncio.run(both())


def test_a_follower_gets_what_comes_later() -> None:
    async def follow() -> list[str]:
        log = EventLog()
        log.add({"n": 1})
        got = []

        async def read() -> None:
            async for entry in log.read(follow=True):
                got.append(json.dumps({"n": entry["n"]}))
                if len(got) == 3:
                    return

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        log.add({"n": 2})
        await asyncio.sleep(0)
        log.add({"n": 3})
        await asyncio.wait_for(reader, 60)
        return got

    assert asyncio.run(follow()) == ['{"n": 1}', '{"n": 2}', '{"n": 3}']


def test_the_log_keeps_only_the_latest() -> None:
    async def read() -> list[Any]:
        log = EventLog(limit=3)
        for n in range(10):
            log.add({"n": n})
        return [entry["n"] async for entry in log.read(follow=False)]

    assert asyncio.run(read()) == [7, 8, 9]


def test_errors_are_json_with_one_line(socket_path: Path) -> None:
    asked = ControlClient(socket_path)
    with pytest.raises(UsageError, match="Not Found"):
        asked.get("/v1/nothing")
    with pytest.raises(UsageError, match="Method Not Allowed"):
        asked.post("/v1/status")
    with pytest.raises(UsageError, match="since"):
        list(asked.follow("/v1/events?since=yesterday"))


def test_the_document_is_handed_out(socket_path: Path) -> None:
    assert "/v1/status" in ControlClient(socket_path).get("/v1/openapi.json")["paths"]


def test_a_group_may_be_let_in(tmp_path: Path) -> None:
    async def both() -> tuple[int, str]:
        path = tmp_path / "control.sock"
        control = Control(Stand(), path, group="daemon")
        await control.start()
        gid = path.stat().st_gid
        await control.close()
        with pytest.raises(UsageError, match="no such group"):
            await Control(Stand(), path, group="nobody-has-this").start()
        return gid, path.parent.name

    import grp

    gid, _ = asyncio.run(both())
    assert gid == grp.getgrnam("daemon").gr_gid


def test_a_group_that_the_server_is_not_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shutil, "chown", refuse)
    with pytest.raises(UsageError, match="SupplementaryGroups=daemon"):
        asyncio.run(Control(Stand(), tmp_path / "control.sock", group="daemon").start())
    assert list(tmp_path.iterdir()) == []


def test_older_entries_come_out_of_the_archive() -> None:
    async def read() -> list[int]:
        log = EventLog(limit=5)
        kept: list[dict[str, Any]] = []
        log.archive = lambda since, before: (
            e for e in kept if e["time"] >= since and e["id"] < before
        )
        for n in range(1, 21):
            log.add({"time": float(n)})
            kept += log.unsaved(10)
        return [entry["id"] async for entry in log.read(follow=False, since=8.0)]

    assert asyncio.run(read()) == list(range(8, 21))


def test_each_entry_is_given_out_once_to_be_saved() -> None:
    log = EventLog(limit=100)
    log.restore(7, [{"id": 7, "time": 0.0}])
    assert not log.has_unsaved
    for n in range(30):
        log.add({"time": float(n)})
    assert [e["id"] for e in log.unsaved(20)] == list(range(8, 28))
    assert [e["id"] for e in log.unsaved(20)] == list(range(28, 38))
    assert log.unsaved(20) == []


def test_who_hangs_up_ends_a_stream_that_says_nothing_and_no_work(tmp_path: Path) -> None:
    async def both() -> None:
        path = tmp_path / "control.sock"
        begun, ended, go, done = (asyncio.Event() for _ in range(4))

        async def lines(_call: Call) -> AsyncGenerator[Json, None]:
            try:
                begun.set()
                await asyncio.Event().wait()
                yield {}
            finally:
                ended.set()

        async def work(_call: Call) -> Json:
            begun.set()
            await go.wait()
            done.set()
            return {}

        routes = (Stream("GET", "/v1/lines", lines), Route("POST", "/v1/work", work))
        control = Control(Stand(), path, routes)
        await control.start()
        try:
            for request in (b"GET /v1/lines", b"POST /v1/work"):
                begun.clear()
                _, writer = await asyncio.open_unix_connection(path)
                writer.write(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                await begun.wait()
                writer.close()
            await asyncio.wait_for(ended.wait(), 60)
            go.set()
            await asyncio.wait_for(done.wait(), 60)
        finally:
            await control.close()

    asyncio.run(both())
