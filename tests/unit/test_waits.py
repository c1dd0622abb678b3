"""A Ctrl-C that comes as a program begins to wait is slept through for a moment at most.

Of a signal between Python's last look for one and the system call, it learns when the call ends.
"""

import queue
import select
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import storm
from pxed.ask import ControlClient
from pxed.lab import demo

SHORT = 1.0


class Waits(list[float]):
    """How long each wait might have been; the third one is when Python learns of the Ctrl-C."""

    def one(self, seconds: float | None) -> None:
        assert seconds is not None
        self.append(seconds)
        if len(self) == 3:
            raise KeyboardInterrupt


@pytest.fixture
def waits() -> Waits:
    return Waits()


def test_the_followers_of_a_server(
    waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Poll:
        def register(self, _what: Any, _events: int) -> None:
            pass

        def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
            waits.one(None if milliseconds is None else milliseconds / 1000)
            return []

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        monkeypatch.setattr(select, "poll", Poll)
        with pytest.raises(KeyboardInterrupt):
            list(ControlClient(tmp_path / "control.sock").follow("/v1/events?follow=1"))
    assert max(waits) <= SHORT


def test_the_demo(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue:
        def get(self, timeout: float | None = None) -> None:
            waits.one(timeout)
            raise queue.Empty

    monkeypatch.setattr(queue, "SimpleQueue", Queue)
    monkeypatch.setattr(threading.Thread, "start", lambda _thread: None)
    client: Any = SimpleNamespace(mac="52:54:00:00:00:01", name="seat", power_on=lambda: None)
    server: Any = SimpleNamespace(control=None)
    seat = demo.Seat(client)
    with pytest.raises(KeyboardInterrupt):
        demo._boot(server, [seat], 180.0, lambda _text: None)
    assert max(waits) <= SHORT
    assert not seat.failed


def test_the_storms_generator(waits: Waits) -> None:
    class Child:
        def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
            waits.one(timeout)
            raise subprocess.TimeoutExpired("storm", 1.0)

    child: Any = Child()
    with pytest.raises(KeyboardInterrupt):
        storm._ends(child, 300.0)
    assert max(waits) <= SHORT
    with pytest.raises(subprocess.TimeoutExpired):
        storm._ends(child, 0.0)
