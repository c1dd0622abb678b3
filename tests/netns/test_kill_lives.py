"""kill -9 at any moment: what was promised holds, and clients that run do not notice."""

import contextlib
import random
import signal
import threading
import time

import pytest

from aoe_fast.initiator import Initiator
from pxed.errors import PxedError
from pxed.mac import Mac, mac_bytes
from tests.netns.test_manage import M1, M2, M3, Room, image, room

__all__ = ["room"]
pytestmark = [pytest.mark.netns, pytest.mark.timeout(900)]

KILLS = 20


class Busy:
    """A client that writes to its /config, people who change things, and strangers who appear.

    ``written``, ``noted`` and ``known`` (those strangers) are what was acknowledged.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.written = self.noted = self.strangers = 0
        self.known = frozenset[Mac]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._write, self._manage)]

    def __enter__(self) -> "Busy":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        """As Linux does it: the same request again until it is answered."""
        cli = self.room.cable.cli
        with cli.inside(), Initiator("eth0", source_mac=mac_bytes(M1), timeout=0.2) as initiator:
            while not self._stop.is_set():
                data = f"{self.written + 1}".encode().ljust(512, b"\0")
                with contextlib.suppress(Exception):
                    initiator.write(16, 3, 8000, data)
                    self.written += 1

    def _manage(self) -> None:
        while not self._stop.is_set():
            body = {"select": [M2], "note": f"{self.noted + 1}"}
            with contextlib.suppress(PxedError):
                self.room.control.post("/v1/clients/note", body)
                self.noted += 1
            self.strangers += 1
            stranger = Mac(f"52:54:00:00:01:{self.strangers & 0xFF:02x}")
            with contextlib.suppress(PxedError):
                self.room.control.post("/v1/clients/note", {"select": [stranger], "note": "x"})
                self.known |= {stranger}
            time.sleep(0.005)


def test_killed_at_any_moment(room: Room) -> None:
    moments = random.Random(7)
    room.start()
    for mac in (M1, M3):
        room.boot(mac)
    room.runs(M1)
    room.pxed("image", "add", str(image(room.state, "2", b"2")))
    room.pxed("image", "use", "lab@2")
    room.pxed("client", "name", str(M1), "seat-01")
    room.pxed("client", "group", str(M3), "-a", "canary")
    room.pxed("client", "boot", str(M2), "provision", "--once")
    address = room.client(M1)["ip"]
    with Busy(room) as busy:
        for _ in range(KILLS):
            time.sleep(moments.uniform(0, 0.3))
            room.stop(signal.SIGKILL)
            written, noted, known = busy.written, busy.noted, busy.known
            room.start()
            assert int(room.client(M2)["note"] or 0) >= noted
            first = room.read(M1, 3, 8000)
            assert int(first.rstrip(b"\0") or 0) >= written
            assert room.read(M1, 0)[:1] == b"1"
            clients = {each["mac"]: each for each in room.control.get("/v1/clients")}
            assert known <= clients.keys()
            assert (clients[M1]["name"], clients[M1]["ip"]) == ("seat-01", address)
            assert (clients[M1]["state"], clients[M1]["image"]) == ("running", "lab@1")
            assert clients[M3]["groups"] == ["canary"]
            assert clients[M2]["once"] == "provision"
        # However slow all this was: it goes on.
        room.until(lambda: min(busy.noted, busy.written) > KILLS and len(busy.known) > 3)
    assert room.boot(M2) == "aoe:e16.2"
    assert room.boot(M2) == "aoe:e16.0"


def test_no_kill_leaves_anything_behind(room: Room) -> None:
    for pause in (0.05, 0.15, 0.25, 0.35, 0.5):
        room.write()
        room.process = room.cable.srv.popen(room.command(), stderr=None)
        time.sleep(pause)
        room.process.kill()
        room.process.wait()
    (room.state / "control.sock").unlink(missing_ok=True)
    room.start()
    room.boot(M1)
    room.stop()
    left = {path.name for path in room.state.iterdir()} - {"pxed.db.copy"}  # made after 10 s
    assert left == {"config", "images", "leases.journal", "lock", "pxed.db", "stopped"}
    layers = sorted(path.name for path in (room.state / "config/midlayers").iterdir())
    assert layers == [".template-8192K.ext4", "525400000001.ext4", "525400000001.report"]
