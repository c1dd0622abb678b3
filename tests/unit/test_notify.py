"""What the service manager and the journal are told."""

import contextlib
import logging
import os
import socket
import threading
from pathlib import Path

import pytest

from aoe_fast.notify import JournalFormatter, Notifier, to_journal
from pxed.eventlog import line_of


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """A service manager's socket, in the environment as systemd sets it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return sock


def test_ready_names_the_process(manager: socket.socket) -> None:
    Notifier().ready("serving eth0")
    lines = manager.recv(4096).decode().splitlines()
    assert lines == ["READY=1", "STATUS=serving eth0", f"MAINPID={os.getpid()}"]


def test_the_watchdog_is_told_at_half_its_time(manager: socket.socket) -> None:
    notifier = Notifier()
    assert notifier.watchdog == 10
    notifier.alive()
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_is_behind_is_waited_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is short; a READY that was lost would be a start that never ends."""
    monkeypatch.setattr("aoe_fast.notify._PATIENCE_S", 60)
    notifier = Notifier()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                others.sendto(b"X=1", manager.getsockname())
    notifier.alive()  # lost, and nobody waits
    teller = threading.Thread(target=notifier.ready, args=("serving eth0",))
    teller.start()
    while (said := manager.recv(4096)) == b"X=1":
        pass
    teller.join()
    assert said.startswith(b"READY=1")


def test_a_watchdog_that_is_meant_for_another_process(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog == 0


def test_children_do_not_inherit_the_address(manager: socket.socket) -> None:
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    Notifier().reloading()
    assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody"])
def test_no_manager_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notifier().ready("serving eth0")


def test_lines_for_the_journal_carry_their_priority() -> None:
    record = logging.LogRecord("pxed", logging.WARNING, "", 0, "two\nlines", None, None)
    assert JournalFormatter().format(record) == "<4>pxed: two\n<4>lines"


def test_only_the_stream_that_is_named_goes_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a").open("w") as a, (tmp_path / "b").open("w") as b:
        about = os.fstat(a.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        assert to_journal(a)
        assert not to_journal(b)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"mac": "-", "event": "boot", "number": 1}, "mac=- event=boot number=1"),
        ({"why": "no room", "empty": ""}, 'why="no room"'),
        ({"name": 'a"b\nc=d'}, 'name="a\\"b\\nc=d"'),
        ({"name": "\x1b[2J"}, 'name="\\u001b[2J"'),
    ],
)
def test_events_are_logged_as_words(fields: dict[str, object], line: str) -> None:
    assert line_of(fields) == line
