"""What survives a restart, and a kill."""

import os
import signal
import sqlite3
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pxed.clients import Client, Stage, State, Step
from pxed.dhcp.leases import Lease
from pxed.dhcp.leases import State as LeaseState
from pxed.errors import HostError, UsageError
from pxed.mac import Mac
from pxed.store import Store

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
        "from pxed.store import Store\nfrom pxed.clients import Client\n"
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
