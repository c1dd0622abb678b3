"""What survives a restart, and a kill."""

import os
import signal
import sqlite3
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed.dhcp.lease import Lease
from pxed.dhcp.lease import State as LeaseState
from pxed.errors import HostError, UsageError
from pxed.mac import Mac
from pxed.seat import Client, Stage, State, Step
from pxed.store import SCHEMA, Store

MAC = Mac("52:54:00:00:00:01")


def test_a_client_comes_back_as_it_was(tmp_path: Path) -> None:
    client = Client(
        MAC, State.RUNNING, name="seat-01", firmware="pxe", arch=7, ip="10.77.0.50",
        image="lab@1", boots=3, boot_started=5.0, last_seen=9.0,
        timeline=[Step(Stage.DISCOVER, 5.0, "pxe"), Step(Stage.RUNNING, 9.0)],
    )  # fmt: skip
    with Store(tmp_path / "pxed.db") as store:
        store.save_clients([client])
    with Store(tmp_path / "pxed.db") as store:
        assert store.clients() == [client]


def test_a_lease_comes_back_as_it_was(tmp_path: Path) -> None:
    lease = Lease(MAC, IPv4Address("10.77.0.50"), LeaseState.BOUND, 100.0)
    with Store(tmp_path / "pxed.db") as store:
        store.save_leases([lease])
    with Store(tmp_path / "pxed.db") as store:
        assert store.leases() == [lease]


def test_the_latest_lease_of_an_address_wins(tmp_path: Path) -> None:
    ip = IPv4Address("10.77.0.50")
    with Store(tmp_path / "pxed.db") as store:
        store.save_leases([Lease(MAC, ip, LeaseState.BOUND, 100.0)])
        store.save_leases([Lease(MAC, ip, LeaseState.RELEASED, 50.0)])
        assert [lease.state for lease in store.leases()] == [LeaseState.RELEASED]


def test_what_was_saved_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "pxed.db"
    script = (
        "import sys, os, signal\n"
        "from pxed.store import Store\nfrom pxed.seat import Client\n"
        "from pathlib import Path\n"
        "store = Store(Path(sys.argv[1]))\n"
        "store.save_clients([Client('52:54:00:00:00:01')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with Store(path) as store:
        assert [client.mac for client in store.clients()] == [MAC]


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pxed.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=999")
    db.close()
    with pytest.raises(UsageError, match="newer pxed"):
        Store(path)


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "pxed.db"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(HostError, match="cannot open the database"):
        Store(path)


SCHEMA_1 = """
CREATE TABLE client (mac TEXT PRIMARY KEY, state TEXT NOT NULL, last_seen REAL NOT NULL,
                     data TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (ip TEXT PRIMARY KEY, mac TEXT NOT NULL, state TEXT NOT NULL,
                    expires REAL NOT NULL) WITHOUT ROWID;
INSERT INTO client VALUES ('52:54:00:00:00:01', 'running', 9.0, '{"class_name":"x86",
  "name":"seat-01","firmware":"pxe","arch":7,"ip":"10.77.0.50","image":"lab@1","boots":3,
  "boot_started":5.0,"chainloaded":true,"degraded":false,"why":"","timeline":[[0,5.0,"pxe"]]}');
INSERT INTO lease VALUES ('10.77.0.50', '52:54:00:00:00:01', 'bound', 100.0);
PRAGMA user_version=1;
"""


def test_a_database_of_schema_1_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "pxed.db"
    db = sqlite3.connect(path)
    db.executescript(SCHEMA_1)
    db.close()
    with Store(path) as store:
        (client,) = store.clients()
        assert (client.name, client.state, client.image) == ("seat-01", State.RUNNING, "lab@1")
        assert (client.once, client.macs) == ("", [])
        assert [lease.mac for lease in store.leases()] == [MAC]
        store.save_events([{"id": 1, "time": 1.0, "kind": "boot"}], 10)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA
    db.close()


def test_what_people_said_comes_back(tmp_path: Path) -> None:
    client = Client(
        MAC, note="by the window", groups=["a", "b"], admission="approved", order="local",
        once="provision", fresh=True, macs=[Mac("52:54:00:00:01:01")], doing="provision",
        mode="provision",
    )  # fmt: skip
    with Store(tmp_path / "pxed.db") as store:
        store.save_clients([client])
    with Store(tmp_path / "pxed.db") as store:
        assert store.clients() == [client]


def test_a_forgotten_client_is_gone(tmp_path: Path) -> None:
    with Store(tmp_path / "pxed.db") as store:
        store.save_clients([Client(MAC), Client(Mac("52:54:00:00:00:02"))])
        store.save(store.batch((), (), (), [MAC]), 0)
        assert [client.mac for client in store.clients()] == ["52:54:00:00:00:02"]


def test_a_damaged_row_costs_one_client(tmp_path: Path) -> None:
    path = tmp_path / "pxed.db"
    with Store(path) as store:
        store.save_clients([Client(MAC), Client(Mac("52:54:00:00:00:02"))])
    db = sqlite3.connect(path)
    db.execute("UPDATE client SET data = '{' WHERE mac = ?", (MAC,))
    db.commit()
    db.close()
    with Store(path) as store:
        assert [client.mac for client in store.clients()] == ["52:54:00:00:00:02"]


def test_events_come_back_and_are_bounded(tmp_path: Path) -> None:
    with Store(tmp_path / "pxed.db") as store:
        for start in range(1, 1001, 100):
            entries = [
                {"id": n, "time": float(n), "kind": "boot"} for n in range(start, start + 100)
            ]
            store.save_events(entries, 250)
        assert store.last_event() == 1000
        assert [entry["id"] for entry in store.events()] == list(range(751, 1001))
        assert [entry["id"] for entry in store.events(since=990.0, before=995)] == [
            *range(990, 995)
        ]
        assert list(store.events(since=2000.0)) == []


def test_a_checkpoint_empties_the_write_ahead_file_for_reuse(tmp_path: Path) -> None:
    wal = tmp_path / "pxed.db-wal"
    with Store(tmp_path / "pxed.db") as store:
        for n in range(300):
            store.save_events([{"id": n + 1, "time": 1.0, "text": "x" * 4000}], 10)
            if n % 10 == 9:
                store.checkpoint()
        assert wal.stat().st_size < 1 << 20


def test_a_flood_of_changes_does_not_grow_the_write_ahead_file_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pxed.store._OFTEN", 100)
    with Store(tmp_path / "db") as store:
        sizes = []
        for first in range(0, 2000, 50):
            entries = [{"id": first + n + 1, "time": 1.0, "kind": "x" * 1000} for n in range(50)]
            store.save_events(entries, keep=100)
            sizes.append((tmp_path / "db-wal").stat().st_size)
    assert max(sizes) < 10 * sizes[0]
