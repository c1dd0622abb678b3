"""Reads, writes and flushes at random against a model of the disk, through the mapping as well."""

import json
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aoe_fast import Export, Server, Target
from aoe_fast.mapped import hot_chunks
from bench import pattern
from bench.native import program
from tests.aoe_peer import PATIENCE, eventually, serving, total
from tests.conftest import Cable
from tests.netns.test_aoe_leaks import held, nothing_more_than, resident_kb

pytestmark = pytest.mark.netns

SPAN = 8 << 11  # sectors: 8 MiB, 128 chunks


class Model:
    """A disk, and what its sectors must hold."""

    def __init__(self, folder: Path) -> None:
        self.disk, self._versions = folder / "disk.img", folder / "versions"
        pattern.make(self.disk, SPAN * 512, piece=4096)
        self._versions.write_bytes(bytes(SPAN * 4))

    def command(self, server: Server, requests: int, **more: int) -> list[str]:
        words = {
            "interface": "eth0", "target": server.ports[0].mac.hex(":"), "span": SPAN,
            "versions": self._versions, "requests": requests, **more,
        }  # fmt: skip
        return [str(program("mixed")), *(f"{key}={value}" for key, value in words.items())]

    def load(self, cable: Cable, server: Server, requests: int, **more: int) -> dict[str, Any]:
        """What it did, which was all right."""
        said = cable.cli.run(self.command(server, requests, **more), timeout=500)
        result: dict[str, Any] = json.loads(said.stdout)
        assert (result["wrong"], result["failed"]) == (0, 0), (result, said.stderr)
        assert result["reads"] + result["writes"] + result["flushes"] == requests
        return result

    def wrong(self) -> int:
        """How many sectors of the file are not what they must be."""
        versions = np.fromfile(self._versions, dtype=np.uint32)
        words = np.fromfile(self.disk, dtype=np.uint64).reshape(SPAN, 64)
        assert (versions > 0).any()
        return sum(
            not (pattern.sectors(0, lba, 1, int(version)) == words[lba]).all()
            for lba, version in enumerate(versions)
        )


def served(disk: Path, durability: str) -> tuple[Export, Target]:
    export = Export(disk, writable=True, durability=durability)
    target = Target()
    target.set_view(None, {(16, 0): export})
    return export, target


@pytest.mark.parametrize("durability", ["durable", "writeback"])
def test_every_read_finds_what_was_acknowledged(
    cable: Cable, tmp_path: Path, durability: str
) -> None:
    model = Model(tmp_path)
    export, target = served(model.disk, durability)
    with export, serving(cable, target, workers=2) as server:
        assert model.load(cable, server, 20_000)["flushes"] > 0
    assert model.wrong() == 0


def test_the_model_sees_a_disk_that_lies(cable: Cable, tmp_path: Path) -> None:
    model = Model(tmp_path)
    export, target = served(model.disk, "writeback")
    with export, serving(cable, target) as server:
        model.load(cable, server, 5_000)
        with model.disk.open("r+b") as file:
            file.write(bytes(SPAN * 512))
        with pytest.raises(AssertionError, match="'wrong'"):
            model.load(cable, server, 5_000)
    assert model.wrong() > SPAN // 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_million_requests_through_the_mapping(cable: Cable, tmp_path: Path) -> None:
    """Syncs come in between: each FLUSH cools all chunks, which are then hot again."""
    model = Model(tmp_path)
    export, target = served(model.disk, "writeback")
    over = threading.Event()
    hot: list[int] = []

    def look() -> None:
        while not over.wait(0.05):
            hot.append(hot_chunks(export))

    with export, serving(cable, target, workers=2) as server:
        looker = threading.Thread(target=look)
        looker.start()
        try:
            done = [model.load(cable, server, 2_000_000, seed=number, sectors=1 + number % 2,
                               flush=10 ** (3 + number)) for number in range(1, 6)]  # fmt: skip
        finally:
            over.set()
            looker.join()
    assert model.wrong() == 0
    print(done, f"{sum(map(bool, hot))} of {len(hot)} looks found hot chunks, {max(hot)} at most")
    assert max(hot) > 10


def has_answered(server: Server, requests: int) -> bool:
    return total(server, "replies") > requests


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_thousand_starts_under_load(cable: Cable, tmp_path: Path) -> None:
    """Each stop answers what has arrived; the next start finds requests on their way."""
    model = Model(tmp_path)
    export, target = served(model.disk, "writeback")
    with export:
        with serving(cable, target) as server:
            model.load(cable, server, 1_000)
            command = ["taskset", "-c", "0", *model.command(server, 1 << 62, again=20)]
        before, memory, hot = held(), 0, 0
        load = cable.cli.popen(command, stdout=subprocess.PIPE)
        try:
            for cycle in range(1000):
                with serving(cable, target, workers=1 + cycle % 2) as server:
                    assert eventually(partial(has_answered, server, 500 + 100 * (cycle % 20)))
                    hot += hot_chunks(export) > 0
                if cycle == 50:
                    memory = resident_kb()
            more = resident_kb() - memory
            load.send_signal(signal.SIGTERM)
            with serving(cable, target):
                result = json.loads(load.communicate(timeout=PATIENCE)[0])
        finally:
            load.kill()
            load.communicate()
        assert nothing_more_than(before)
    assert (result["wrong"], result["failed"]) == (0, 0), result
    assert model.wrong() == 0
    print(f"{result}; {more} KiB more; hot in {hot} cycles")
    assert more < 24 << 10
