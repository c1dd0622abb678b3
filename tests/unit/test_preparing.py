"""However often one machine begins to boot, the others wait no longer for it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pxed.config import parse
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.midlayers import Prepared
from pxed.preparing import MENDERS, Preparing
from pxed.seat import Client

ONE, TWO = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")


class Layers:
    """Midlayers whose preparation ends when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Mac] = []
        self.unclean: set[Mac] = set()
        self.begun, self.go = threading.Event(), threading.Event()
        self.slow = {ONE}

    def prepare(self, mac: Mac, _size: object, **_options: object) -> Prepared:
        self.made.append(mac)
        if mac in self.slow:
            self.begun.set()
            assert self.go.wait(120)
        return Prepared(True)

    def is_unclean(self, mac: Mac) -> bool:
        return mac in self.unclean

    def path(self, mac: Mac) -> Path:
        return self.folder / mac

    def report_path(self, mac: Mac) -> Path:
        return self.folder / f"{mac}.report"

    def exists(self, _mac: Mac) -> bool:
        return True


def preparing(
    layers: Layers, told: list[Event], image_for: Callable[[Client], str] = lambda _client: "lab@1"
) -> Preparing:
    anything: Any = SimpleNamespace(
        config=parse('interface = "eth0"'), image_for=image_for,
        mode_of=lambda *_: "diskless", silence=lambda *_: 1e9, refresh=lambda: None,
        has_layer=lambda _mac: True, has_private=lambda _mac: True, show=lambda *_: None,
        open_private=lambda *_, **_more: None, close_private=lambda _mac: None,
    )  # fmt: skip
    return Preparing(
        anything, cast(Any, layers), anything, anything, emit=told.append,
        alarm=lambda *_: None, keep=lambda _client: None,
    )  # fmt: skip


def test_one_that_begins_again_and_again_is_prepared_once_more(tmp_path: Path) -> None:
    layers, told = Layers(tmp_path), list[Event]()

    async def boots() -> None:
        here = preparing(layers, told)
        client = Client(ONE)
        tasks = [asyncio.create_task(here.prepare(client, 0.0)) for _ in range(50)]
        other = asyncio.create_task(here.prepare(Client(TWO), 0.0))
        await asyncio.wait_for(other, 60)  # although the first is far from ready
        assert await asyncio.to_thread(layers.begun.wait, 60)
        assert layers.made.count(ONE) == 1
        layers.go.set()
        await asyncio.gather(*tasks)
        await here.prepare(client, 0.0)  # and none is locked out for ever
        here.close()

    asyncio.run(boots())
    assert layers.made.count(ONE) == 3
    assert [event.kind for event in told] == [Kind.MIDLAYER_READY] * 4


def test_those_that_must_be_mended_hold_up_nobody_else(tmp_path: Path) -> None:
    layers, told = Layers(tmp_path), list[Event]()
    broken = [Mac(f"52:54:00:00:01:{number:02x}") for number in range(3 * MENDERS + 4)]
    layers.slow = layers.unclean = set(broken)

    async def boots() -> None:
        here = preparing(layers, told)
        tasks = [asyncio.create_task(here.prepare(Client(mac), 0.0)) for mac in broken]
        await asyncio.wait_for(here.prepare(Client(TWO), 0.0), 60)
        layers.go.set()
        await asyncio.gather(*tasks)
        here.close()

    asyncio.run(boots())
    assert {event.mac for event in told} == {TWO, *broken}


def test_of_a_class_that_is_not_there(tmp_path: Path) -> None:
    """The reason is a sentence."""
    told = list[Event]()
    images: dict[str, str] = {}

    async def boots() -> None:
        here = preparing(Layers(tmp_path), told, lambda client: images[client.class_name])
        await here.prepare(Client(ONE, class_name="rpi"), 0.0)
        here.close()

    asyncio.run(boots())
    assert [event.detail["why"] for event in told] == [
        "there is no image for it: configure [class.rpi]"
    ]


def test_a_failure_lets_the_next_one_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, told = Layers(tmp_path), list[Event]()
    layers.slow = set()

    def fails(*_: object, **_options: object) -> Prepared:
        raise OSError("no disk")

    async def boots() -> None:
        here = preparing(layers, told)
        with monkeypatch.context() as broken:
            broken.setattr(layers, "prepare", fails)
            with pytest.raises(OSError, match="no disk"):
                await here.prepare(Client(ONE), 0.0)
        await here.prepare(Client(ONE), 0.0)
        here.close()

    asyncio.run(boots())
    assert layers.made == [ONE]
