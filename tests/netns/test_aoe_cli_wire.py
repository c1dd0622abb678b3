"""The server on a wire answers as the plain Python reference does: rings, sockets and all.

Same frames as tests/property/test_aoe_differential.py, sent one after the other; what is silence
for the reference must be silence here.
"""

import random
import select
import socket
import struct
import time
from pathlib import Path

import pytest

pytest.importorskip("aoe_fast.server", reason="the extension is not built: run script/bootstrap")

from aoe_fast import Server
from tests.aoe_peer import PATIENCE
from tests.conftest import Cable
from tests.property.test_aoe_differential import OWN, World, frame

pytestmark = pytest.mark.netns

FRAMES = 3000


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_server_and_reference_agree(cable: Cable, tmp_path: Path, mtu: int) -> None:
    for space in (cable.srv, cable.cli):
        space.ip(f"link set eth0 mtu {mtu}")
    cable.srv.ip(f"link set eth0 address {OWN.hex(':')}")
    rng = random.Random(mtu)
    world = World(rng, tmp_path)
    with cable.cli.inside():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88A2))
        wire.bind(("eth0", 0x88A2))
        index = socket.if_nametoindex("eth0")
        wire.setsockopt(263, 1, struct.pack("iHH8s", index, 1, 0, b""))
    server = Server(world.core, ["eth0"], workers=1)
    with cable.srv.inside():
        server.start()
    answered = 0
    try:
        for number in range(FRAMES):
            if rng.random() < 0.01:
                world.change(rng)
            data = frame(rng)
            if not 14 <= len(data) <= mtu + 14:
                continue
            want = world.reference.handle(data, OWN, mtu)
            seen = int(server.counters["frames"].sum())
            wire.send(data)
            got: list[bytes] = []
            # One who answers too much is caught by the next frame.
            while len(got) < len(want) and select.select([wire], [], [], PATIENCE)[0]:
                got.append(wire.recv(65536))
            if not want:
                # The next change of views must not reach the server before this frame did; what
                # the kernel's filter refuses (no AoE, a reply, another's) is never counted.
                request = len(data) > 14 and data[12:14] == b"\x88\xa2" and not data[14] & 8
                counted = request and (data[:6] == OWN or data[0] & 1)
                end = time.monotonic() + (PATIENCE if counted else 0.005)
                while server.counters["frames"].sum() == seen and time.monotonic() < end:
                    time.sleep(0.0005)
            # A wildcard's answers may overtake those that wait for a sync.
            assert sorted(got) == sorted(want), f"{number}: {data.hex()}"
            answered += bool(got)
        assert not select.select([wire], [], [], 0.2)[0]
    finally:
        server.stop()
        wire.close()
    world.check_images()
    assert answered > FRAMES / 5
    assert server.counters["drops"].sum() == 0
    world.close()
