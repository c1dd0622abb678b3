"""``[tftp]`` in the configuration, through a whole ``pxed serve``."""

import os
import socket
from pathlib import Path

import pytest

from pxed.ask import ControlClient
from pxed.mac import Mac
from pxed.tftp.codec import Ack, Data, Oack, Request, decode, encode
from tests.aoe_peer import eventually
from tests.conftest import Cable, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_tftp_server import expect

pytestmark = pytest.mark.netns
CONTENT = os.urandom(100_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tftp"
    folder.mkdir(mode=0o755)
    (folder / "Kernel.IMG").write_bytes(CONTENT)
    return folder


def test_single_port_and_any_case(cable: Cable, serve: Serve, root: Path, tmp_path: Path) -> None:
    """Also after the server gave its rights up: port 69 is bound anew for every transfer."""
    requires("curl")
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    serve.start(f'{GOOD}[tftp]\nroot = "{root}"\nsingle_port = true\nfold_case = true\n')
    out = tmp_path / "out"
    cable.cli.run(["curl", "-sS", "-m", "60", "-o", str(out), "tftp://10.77.0.1/KERNEL.img"])
    assert out.read_bytes() == CONTENT
    with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(60)
        udp.connect(("10.77.0.1", 69))
        udp.send(encode(Request("kernel.img")))
        assert decode(udp.recv(2048)) == Data(1, CONTENT[:512])
        udp.send(encode(Ack(1)))
        expect(udp, Data(2, CONTENT[512:1024]))
    # Of a transfer that has ended the server hears after its client.
    assert eventually(lambda: serve.ask("status")["tftp"].get("done"))
    tftp = serve.ask("status")["tftp"]
    assert tftp["started"] >= 2  # curl asks again after a few seconds
    assert tftp["done"] == 1
    assert tftp["packets"] >= 100_000 // 512


def test_blocks_are_clamped_for_all_and_for_one(cable: Cable, serve: Serve, root: Path) -> None:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    shown = cable.cli.run(["ip", "-o", "link", "show", "eth0"]).stdout
    mac = Mac(shown.split("link/ether ")[1].split()[0])
    both = f'{GOOD}[tftp]\nroot = "{root}"\nmax_blksize = 1400\n'
    server = serve.start(both)
    ask = Request("Kernel.IMG", options={"blksize": "1468"})

    def answer() -> object:
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(60)
            udp.sendto(encode(ask), ("10.77.0.1", 69))
            return decode(udp.recv(2048))

    assert answer() == Oack({"blksize": "1400"})
    server.terminate()
    server.wait(60)
    one = f'{both}[client."{mac}"]\nmax_blksize = '
    serve.start(f"{one}1024\n")
    assert answer() == Oack({"blksize": "1024"})
    serve.command(f"{one}1000\n")  # which writes the file
    ControlClient(serve.state / "control.sock").post("/v1/config/reload", {})
    assert answer() == Oack({"blksize": "1000"})
