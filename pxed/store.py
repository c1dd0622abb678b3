"""What survives a restart: clients, leases and events, in SQLite. No other module knows SQL.

A commit is in the kernel's hands when it returns, so kill -9 loses nothing; WAL with
synchronous=NORMAL keeps commits off the disk's latency, so the event loop is not held up.
"""

import contextlib
import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

from pxed.dhcp.lease import Lease
from pxed.dhcp.lease import State as LeaseState
from pxed.errors import HostError, UsageError
from pxed.eventlog import LASTING, Entry
from pxed.mac import Mac, parse_mac
from pxed.seat import Client, Stage, State, Step

log = logging.getLogger("pxed.store")

# What leads from each schema to the next; a new database goes through all of them.
_MIGRATIONS = (
    """
CREATE TABLE client (mac TEXT PRIMARY KEY, state TEXT NOT NULL, last_seen REAL NOT NULL,
                     data TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (ip TEXT PRIMARY KEY, mac TEXT NOT NULL, state TEXT NOT NULL,
                    expires REAL NOT NULL) WITHOUT ROWID;
""",
    """
CREATE TABLE event (id INTEGER PRIMARY KEY, time REAL NOT NULL, data TEXT NOT NULL);
CREATE INDEX event_time ON event (time);
""",
)
SCHEMA = len(_MIGRATIONS)
_PAGE = 200
_FULL = 1 << 20  # bytes that are free
_OFTEN = 10_000  # rows: some 20 MB of write-ahead file
_LONGER = 10  # times as many entries until one that lasts is dropped
_KINDS = " OR ".join(f'data LIKE \'{{"kind":"{kind}"%\'' for kind in sorted(LASTING))
_DROP = f"DELETE FROM event WHERE id <= ? AND (id <= ? OR NOT ({_KINDS}))"  # noqa: S608 (ours)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are saved together, all or none."""

    clients: list[Row]
    leases: list[Row]
    events: list[Row]
    gone: list[Row]  # clients that were forgotten before those above were made
    of_leases: list[Lease]  # what the rows of leases were made of


class Store:
    """The database of one state directory; a context manager.

    One thread may write while another reads. HostError if it cannot be opened or is damaged;
    UsageError if a newer pxed wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._written = 0  # rows since the last checkpoint
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise UsageError(
                    f"{path}: written by a newer pxed (schema {version}, this one knows {SCHEMA}): "
                    "upgrade pxed, or choose another state_dir"
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # it waits for the disk: checkpoint()
            self._db.execute("PRAGMA journal_size_limit=16777216")  # after a flood it shrinks again
            for number, step in enumerate(_MIGRATIONS[version:], version + 1):
                self._db.executescript(f"BEGIN;{step}PRAGMA user_version={number};COMMIT;")
            # Whoever reads must not wait for what a writer waits for.
            self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise HostError(self._refused(f"cannot open the database: {error}")) from error

    def _refused(self, what: str) -> str:
        """The same, where that may be for want of room: SQLite calls a full disk an I/O error."""
        with contextlib.suppress(OSError):
            if (free := shutil.disk_usage(self.path.parent).free) < _FULL:
                return f"{self.path}: {what}: its disk is full ({free >> 10} KiB): free some space"
        return self._damaged(what)

    def _damaged(self, what: str) -> str:
        """One line that says what is wrong and how the lab goes on without losing more."""
        kept = copy_of(self.path)
        if kept.exists():
            age = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.stat().st_mtime))
            advice = f"stop the server, move it away with its -wal file, and rename {kept} ({age})"
            return f"{self.path}: {what}: {advice} to it"
        return (
            f"{self.path}: {what}: mend it with sqlite3 .recover, or move it away with its -wal "
            "file (clients then count as new; their midlayers stay)"
        )

    def clients(self) -> list[Client]:
        """Every client that was saved."""
        found = []
        for row in self._read("SELECT mac, state, last_seen, data FROM client"):
            try:
                found.append(_client(*row))
            except (ValueError, TypeError, KeyError) as error:
                log.error("%s: the row of client %s is damaged: %r", self.path, row[0], error)
        return found

    def batch(
        self, clients: Iterable[Client], leases: Iterable[Lease], events: Iterable[Entry],
        gone: Iterable[Mac] = (),
    ) -> Batch:  # fmt: skip
        """The rows of all these; nothing is written yet."""
        entries = []
        leases = list(leases)
        for entry in events:
            rest = {key: value for key, value in entry.items() if key not in ("id", "time")}
            entries.append((entry["id"], entry["time"], json.dumps(rest, separators=(",", ":"))))
        return Batch(
            [(c.mac, c.state.value, c.last_seen, _data(c)) for c in clients],
            [(str(lease.ip), lease.mac, lease.state.value, lease.expires) for lease in leases],
            entries,
            [(mac,) for mac in gone],
            leases,
        )

    def save(self, batch: Batch, keep: int) -> None:
        """Write a batch, and drop all but the last ``keep`` events; LASTING ones stay longer."""
        last = batch.events[-1][0] if batch.events else 0
        oldest = [(last - keep, last - _LONGER * keep)] if batch.events else []
        self._write(
            ("DELETE FROM client WHERE mac = ?", batch.gone),
            ("INSERT OR REPLACE INTO client VALUES (?, ?, ?, ?)", batch.clients),
            ("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", batch.leases),
            ("INSERT OR REPLACE INTO event VALUES (?, ?, ?)", batch.events),
            (_DROP, oldest),
        )
        self._written += sum(map(len, (batch.gone, batch.clients, batch.leases, batch.events)))
        if self._written > _OFTEN:  # a flood: who calls this later finds the disk full
            with contextlib.suppress(HostError):
                self.checkpoint()

    def save_clients(self, clients: Iterable[Client]) -> None:
        """Write these clients, all or none."""
        self.save(self.batch(clients, (), ()), 0)

    def leases(self) -> list[Lease]:
        """Every lease that was saved."""
        found = []
        for ip, mac, state, expires in self._read("SELECT ip, mac, state, expires FROM lease"):
            try:
                found.append(Lease(parse_mac(mac), IPv4Address(ip), LeaseState(state), expires))
            except (ValueError, TypeError) as error:
                log.error("%s: the row of lease %s is damaged: %r", self.path, ip, error)
        return found

    def save_leases(self, leases: Iterable[Lease]) -> None:
        """Write these leases, all or none; the address is the key."""
        self.save(self.batch((), leases, ()), 0)

    def events(self, *, since: float = 0.0, before: int = 1 << 62) -> Iterator[Entry]:
        """Entries of the event log from ``since`` on with an id below ``before``, oldest first.

        They are read a page at a time, so whoever iterates can do other things in between.
        """
        ((first,),) = self._read("SELECT min(id) FROM event WHERE time >= ?", (since,))
        after = before if first is None else int(first) - 1
        while rows := self._read(
            "SELECT id, time, data FROM event WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
            (after, before, _PAGE),
        ):
            after = rows[-1][0]
            yield from self._entries(rows)

    def events_after(self, number: int) -> list[Entry]:
        """Entries of the event log with an id above ``number``, oldest first."""
        rows = self._read("SELECT id, time, data FROM event WHERE id > ? ORDER BY id", (number,))
        return list(self._entries(rows))

    def _entries(self, rows: Iterable[Row]) -> Iterator[Entry]:
        for number, at, data in rows:
            try:
                yield {"id": number, "time": at} | json.loads(data)
            except (ValueError, TypeError) as error:
                log.error("%s: event %s is damaged: %r", self.path, number, error)

    def last_event(self) -> int:
        """The highest id in the event log, 0 if it is empty."""
        return int(next(iter(self._read("SELECT max(id) FROM event")))[0] or 0)

    def save_events(self, entries: Iterable[Entry], keep: int) -> None:
        """Append entries of the log, and drop all but the last ``keep``."""
        self.save(self.batch((), (), entries), keep)

    def checkpoint(self) -> None:
        """Bring what was written into the main file; for a thread: it waits for the disk.

        Nothing is lost without it, but the write-ahead file grows. HostError.
        """
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as own:
                own.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._written = 0
        except sqlite3.Error as error:
            raise HostError(f"{self.path}: cannot write: {error}") from error

    def copy(self) -> Path:
        """Write a second database beside this one, whole or not at all; for a thread.

        What takes its place if this one is damaged. HostError, and the earlier copy stays, if this
        one already is.
        """
        kept = copy_of(self.path)
        new = kept.with_name(f".new-{kept.name}")
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as own:
                (said,) = own.execute("PRAGMA quick_check(1)").fetchone()
                if said != "ok":
                    raise HostError(self._damaged(f"is damaged: {said.splitlines()[-1]}"))
                new.unlink(missing_ok=True)
                with contextlib.closing(sqlite3.connect(new)) as target:
                    own.backup(target)
            new.replace(kept)
        except sqlite3.DatabaseError as error:
            raise HostError(self._refused(str(error))) from error
        except (OSError, sqlite3.Error) as error:
            raise HostError(f"{kept}: cannot be written: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
        return kept

    def _read(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise HostError(self._damaged(f"cannot read: {error}")) from error

    def _write(self, *statements: tuple[str, Sequence[Row]]) -> None:
        if not any(rows for _, rows in statements):
            return
        with self._lock:
            try:
                self._db.execute("BEGIN")
                for statement, rows in statements:
                    if rows:
                        self._db.executemany(statement, rows)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise HostError(f"{self.path}: cannot write: {error}") from error

    def close(self) -> None:
        self._reader.close()
        self._db.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def copy_of(path: Path) -> Path:
    """Where ``Store.copy`` writes."""
    return path.with_name(f"{path.name}.copy")


_PLAIN = ("class_name", "name", "firmware", "arch", "ip", "image", "boots", "boot_started",
          "chainloaded", "degraded", "why", "damage", "note", "groups", "admission", "order",
          "once", "fresh", "macs", "doing", "mode", "result", "provisioned")  # fmt: skip


_STAGES = {int(stage): stage for stage in Stage}  # much quicker than Stage(number)


def _data(client: Client) -> str:
    data = {key: getattr(client, key) for key in _PLAIN}
    data["timeline"] = [[int(step.stage), step.time, step.detail] for step in client.timeline]
    return json.dumps(data, separators=(",", ":"))


def _client(mac: str, state: str, last_seen: float, data: str) -> Client:
    values = json.loads(data)
    timeline = [Step(_STAGES[stage], at, detail) for stage, at, detail in values.pop("timeline")]
    return Client(
        mac=parse_mac(mac), state=State(state), last_seen=last_seen, timeline=timeline,
        **{key: values[key] for key in _PLAIN if key in values},
    )  # fmt: skip
