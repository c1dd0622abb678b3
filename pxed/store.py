"""What survives a restart: clients and leases, in SQLite. No other module knows SQL.

A commit is in the kernel's hands when it returns, so kill -9 loses nothing; WAL with
synchronous=NORMAL keeps commits off the disk's latency, so the event loop is not held up.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

from pxed.clients import Client, Stage, State, Step
from pxed.dhcp.leases import Lease
from pxed.dhcp.leases import State as LeaseState
from pxed.errors import HostError, UsageError
from pxed.mac import Mac

SCHEMA = 1

_CREATE = """
CREATE TABLE client (mac TEXT PRIMARY KEY, state TEXT NOT NULL, last_seen REAL NOT NULL,
                     data TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (ip TEXT PRIMARY KEY, mac TEXT NOT NULL, state TEXT NOT NULL,
                    expires REAL NOT NULL) WITHOUT ROWID;
"""


class Store:
    """The database of one state directory; a context manager.

    HostError if it cannot be opened or is damaged; UsageError if a newer pxed wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN;{_CREATE}PRAGMA user_version={SCHEMA};COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise HostError(f"{path}: cannot open the database: {error}") from error
        if version > SCHEMA:
            raise UsageError(
                f"{path}: written by a newer pxed (schema {version}, this one knows {SCHEMA}): "
                "upgrade pxed, or choose another state_dir"
            )

    def clients(self) -> list[Client]:
        """Every client that was saved."""
        rows = self._db.execute("SELECT mac, state, last_seen, data FROM client")
        return [_client(*row) for row in rows]

    def save_clients(self, clients: Iterable[Client]) -> None:
        """Write these clients, all or none."""
        rows = [(c.mac, c.state.value, c.last_seen, _data(c)) for c in clients]
        self._write("INSERT OR REPLACE INTO client VALUES (?, ?, ?, ?)", rows)

    def leases(self) -> list[Lease]:
        """Every lease that was saved."""
        rows = self._db.execute("SELECT ip, mac, state, expires FROM lease")
        return [
            Lease(Mac(mac), IPv4Address(ip), LeaseState(state), expires)
            for ip, mac, state, expires in rows
        ]

    def save_leases(self, leases: Iterable[Lease]) -> None:
        """Write these leases, all or none; the address is the key."""
        rows = [(str(lease.ip), lease.mac, lease.state.value, lease.expires) for lease in leases]
        self._write("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", rows)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        try:
            self._db.execute("BEGIN")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise HostError(f"{self.path}: cannot write: {error}") from error

    def close(self) -> None:
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


_PLAIN = ("class_name", "name", "firmware", "arch", "ip", "image", "boots", "boot_started",
          "chainloaded", "degraded", "why")  # fmt: skip


def _data(client: Client) -> str:
    data = {key: getattr(client, key) for key in _PLAIN}
    data["timeline"] = [[int(step.stage), step.time, step.detail] for step in client.timeline]
    return json.dumps(data, separators=(",", ":"))


def _client(mac: str, state: str, last_seen: float, data: str) -> Client:
    values = json.loads(data)
    timeline = [Step(Stage(stage), time, detail) for stage, time, detail in values.pop("timeline")]
    return Client(
        mac=Mac(mac), state=State(state), last_seen=last_seen, timeline=timeline,
        **{key: values[key] for key in _PLAIN if key in values},
    )  # fmt: skip
