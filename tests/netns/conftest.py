"""``pxed serve`` in a namespace, with an image that is nothing but its files."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cable, requires

GOOD = 'interface = "eth0"\nstate_dir = "STATE"\n'


def make_state(folder: Path) -> Path:
    """A state directory in ``folder`` with an image that is nothing but its files."""
    requires("mkfs.ext4")
    directory = folder / "state" / "images" / "lab" / "1"
    directory.mkdir(parents=True)
    (directory / "boot.img").write_bytes(b"boot" * 2048)
    (directory / "root.img").write_bytes(b"root" * 2048)
    manifest = {
        "name": "lab",
        "version": "1",
        "class": "x86",
        "devices": {"boot": "boot.img", "root": "root.img"},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return folder / "state"


def kept(state: Path, mac: str) -> dict[str, Any]:
    """What the database of a running server holds of a client, which a kill leaves; {}: nothing."""
    with closing(sqlite3.connect(f"file:{state}/pxed.db?mode=ro", uri=True, timeout=60)) as db:
        row = db.execute("SELECT state, data FROM client WHERE mac = ?", (mac,)).fetchone()
    return {} if row is None else {"state": row[0], **json.loads(row[1])}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory of the test's own."""
    return make_state(tmp_path)


class Serve:
    """Writes a configuration and runs ``pxed serve`` in the server's namespace."""

    def __init__(self, cable: Cable, state: Path) -> None:
        self.cable, self.state = cable, state
        self.config = state.parent / "pxed.toml"

    def command(self, text: str, before: str = "") -> list[str]:
        """``before``: Python that its process runs first."""
        self.config.write_text(text.replace("STATE", str(self.state)))
        command = [sys.executable, "-m", "pxed", "serve", "-c", str(self.config)]
        if before:
            main = f"{before}import sys; from pxed.cli import main; sys.argv[0] = 'pxed'; main()"
            command[1:3] = ["-c", main]
        return command

    def refuses(
        self, text: str, status: int, *words: str, before: str = "",
        excused: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """It ends in this way; ``excused``: whether it could not know, and is to try again."""
        while (ended := self._ended(text, before)) is None:
            assert excused(), "it serves"
        returned, said = ended
        lines = said.strip().splitlines()
        assert returned == status, said
        assert len(lines) == 1, said
        for word in words:
            assert word in lines[0]
        assert not (self.state / "control.sock").exists()

    def _ended(self, text: str, before: str = "") -> tuple[int, str] | None:
        """Exit status and words; None if it serves, which it does no longer then."""
        process = self.cable.srv.popen(
            self.command(text, before), stderr=subprocess.PIPE, text=True
        )
        socket, deadline = self.state / "control.sock", time.monotonic() + 120
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline
                if socket.exists():
                    return None
                time.sleep(0.02)
            assert process.stderr is not None
            return process.returncode, process.stderr.read()
        finally:
            process.kill()
            process.wait()
            if process.returncode < 0:
                socket.unlink(missing_ok=True)

    def start(self, text: str = GOOD) -> "subprocess.Popen[bytes]":
        """Run it in the background until it answers; the cable's end kills it."""
        process = self.cable.srv.popen(self.command(text), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (self.state / "control.sock").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def ask(self, *words: str) -> Any:
        """What ``pxed WORDS --json`` says about this server."""
        command = [sys.executable, "-m", "pxed", *words, "--json"]
        done = subprocess.run(
            [*command, "--state-dir", str(self.state)], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)


@pytest.fixture
def serve(cable: Cable, state: Path) -> Serve:
    return Serve(cable, state)


@pytest.fixture
def running(serve: Serve) -> Iterator["subprocess.Popen[bytes]"]:
    process = serve.start()
    yield process
    process.kill()
    process.wait()
