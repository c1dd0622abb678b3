"""The TFTP server against real clients: curl, tftp-hpa, atftp, and raw packets for the rest."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pxed.events import Event, Kind
from pxed.net.link import look_up
from pxed.net.tftp import TftpServer
from pxed.net.thread import LoopThread
from pxed.tftp.codec import Ack, Data, Error, Oack, Request, decode, encode
from pxed.tftp.files import Files
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns
CONTENT = os.urandom(3_000_001)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tftp"
    folder.mkdir()
    (folder / "big.bin").write_bytes(CONTENT)
    (folder / "even.bin").write_bytes(CONTENT[: 512 * 10])
    (folder / "note.txt").write_bytes(b"one\ntwo\n")
    return folder


@contextmanager
def serving(cable: Cable, root: Path) -> Iterator[tuple[TftpServer, list[Event]]]:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    events: list[Event] = []
    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> TftpServer:
            files = Files(root, virtual={"boot.ipxe": b"#!ipxe\n"})
            server = TftpServer(look_up("eth0"), files.open, events.append)
            await server.start()
            return server

        server = thread.call(start())
        try:
            yield server, events
        finally:
            thread.call(server.close())
            thread.call(server.close())
            assert server.sessions == 0


def kinds(events: list[Event], last: Kind) -> list[Kind]:
    """The kinds of all events once ``last`` has come."""
    deadline = time.monotonic() + 5
    while (not events or events[-1].kind is not last) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [event.kind for event in events]


def curl(cable: Cable, name: str, out: Path, *options: str, check: bool = True) -> int:
    requires("curl")
    command = ["curl", "-sS", "-m", "20", *options, "-o", str(out), f"tftp://10.77.0.1/{name}"]
    return cable.cli.run(command, check=check).returncode


@pytest.mark.parametrize("blksize", [None, 512, 1468, 8192])
def test_curl(cable: Cable, root: Path, tmp_path: Path, blksize: int | None) -> None:
    out = tmp_path / "out"
    options = [] if blksize is None else ["--tftp-blksize", str(blksize)]
    with serving(cable, root) as (_, events):
        curl(cable, "big.bin", out, *options)
        assert kinds(events, Kind.TFTP_DONE)[-2:] == [Kind.TFTP_READ, Kind.TFTP_DONE]
    assert out.read_bytes() == CONTENT


def test_curl_without_options(cable: Cable, root: Path, tmp_path: Path) -> None:
    with serving(cable, root):
        curl(cable, "even.bin", tmp_path / "out", "--tftp-no-options")
    assert (tmp_path / "out").read_bytes() == CONTENT[: 512 * 10]


def test_curl_virtual_file(cable: Cable, root: Path, tmp_path: Path) -> None:
    with serving(cable, root):
        curl(cable, "boot.ipxe", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"#!ipxe\n"


def test_curl_missing(cable: Cable, root: Path, tmp_path: Path) -> None:
    with serving(cable, root) as (_, events):
        assert curl(cable, "nothing", tmp_path / "out", check=False) == 68  # CURLE_TFTP_NOTFOUND
        assert kinds(events, Kind.TFTP_MISSING) == [Kind.TFTP_MISSING]


def test_curl_cannot_write(cable: Cable, root: Path, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(b"x")
    with serving(cable, root):
        status = curl(cable, "up", tmp_path / "out", "-T", str(tmp_path / "up"), check=False)
    assert status == 69  # CURLE_TFTP_PERM
    assert not (root / "up").exists()


def test_tftp_hpa_octet(cable: Cable, root: Path, tmp_path: Path) -> None:
    requires("tftp")
    with serving(cable, root):
        cable.cli.run(["sh", "-c", f"cd {tmp_path} && tftp -m octet 10.77.0.1 -c get big.bin out"])
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_tftp_hpa_netascii(cable: Cable, root: Path, tmp_path: Path) -> None:
    requires("tftp")
    with serving(cable, root):
        cable.cli.run(
            ["sh", "-c", f"cd {tmp_path} && tftp -m netascii 10.77.0.1 -c get note.txt out"]
        )
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("window", [1, 4, 64])
def test_atftp(cable: Cable, root: Path, tmp_path: Path, window: int) -> None:
    requires("atftp")
    options = ["--option", "blksize 1428", "--option", f"windowsize {window}"]
    out = str(tmp_path / "out")
    with serving(cable, root):
        cable.cli.run(
            ["atftp", *options, "-g", "-r", "big.bin", "-l", out, "10.77.0.1"], timeout=30
        )
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_atftp_with_loss(cable: Cable, root: Path, tmp_path: Path) -> None:
    """Every hundredth packet is lost both ways: windows go back, the file is whole."""
    requires("atftp", "tc")
    for ns in (cable.srv, cable.cli):
        rule = "tc qdisc add dev eth0 root netem loss 1%"
        if ns.run(rule.split(), check=False).returncode:
            pytest.skip("needs the kernel's netem")
    out = str(tmp_path / "out")
    options = ["--option", "blksize 1428", "--option", "windowsize 8", "--option", "timeout 1"]
    (root / "part.bin").write_bytes(CONTENT[:300_000])
    with serving(cable, root):
        cable.cli.run(
            ["atftp", *options, "-g", "-r", "part.bin", "-l", out, "10.77.0.1"], timeout=60
        )
    assert (tmp_path / "out").read_bytes() == CONTENT[:300_000]


def test_probe_then_read_from_one_port(cable: Cable, root: Path) -> None:
    """OVMF's way: ask for the size, abort, ask again."""
    ask = Request("even.bin", options={"tsize": "0", "blksize": "1468"})
    with (
        serving(cable, root) as (_, events),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(5)
        udp.sendto(encode(ask), ("10.77.0.1", 69))
        data, server = udp.recvfrom(2048)
        assert decode(data) == Oack({"tsize": "5120", "blksize": "1468"})
        udp.sendto(encode(Error(8, "User aborted the transfer")), server)
        assert kinds(events, Kind.TFTP_PROBE) == [Kind.TFTP_PROBE]
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        data, server = udp.recvfrom(2048)
        first = decode(data)
        assert isinstance(first, Data)
        assert first.payload == CONTENT[:512]
        udp.sendto(encode(Ack(1)), server)
        second = decode(udp.recv(2048))
        assert isinstance(second, Data)
        assert second.block == 2


def test_a_repeated_request_starts_over_on_the_same_port(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root) as (server, _),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(5)
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        first = udp.recvfrom(2048)
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        assert udp.recvfrom(2048) == first
        assert server.sessions == 1


def test_a_client_that_vanishes_is_noticed(cable: Cable, root: Path) -> None:
    with serving(cable, root) as (_, events):
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(5)
            udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
            udp.recv(2048)
        # The port is closed: the next retransmission comes back as ICMP port unreachable.
        assert kinds(events, Kind.TFTP_FAILED)[-1] is Kind.TFTP_FAILED


def test_one_client_cannot_take_every_session(cable: Cable, root: Path) -> None:
    with serving(cable, root) as (server, _), cable.cli.inside():
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(30)]
        for udp in sockets:
            udp.settimeout(5)
            udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
            udp.recv(2048)
        assert server.sessions == 16
        for udp in sockets:
            udp.close()


def test_windows_without_segmentation(cable: Cable, root: Path, tmp_path: Path) -> None:
    """A kernel or an interface without UDP_SEGMENT sends block by block."""
    requires("atftp")
    out = str(tmp_path / "out")
    get = ["atftp", "--option", "windowsize 16", "-g", "-r", "big.bin", "-l", out, "10.77.0.1"]
    with serving(cable, root) as (server, _):
        server.segmenting = False
        cable.cli.run(get)
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_the_answer_comes_from_the_address_that_was_asked(cable: Cable, root: Path) -> None:
    cable.srv.ip("addr add 10.77.0.7/24 dev eth0")
    with (
        serving(cable, root),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(5)
        udp.sendto(encode(Request("even.bin")), ("10.77.0.7", 69))
        _, source = udp.recvfrom(2048)
    assert source[0] == "10.77.0.7"


def test_a_faulty_listener_does_not_stop_the_service(
    cable: Cable, root: Path, tmp_path: Path
) -> None:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")

    def broken(event: Event) -> None:
        raise RuntimeError(event.kind)

    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> TftpServer:
            server = TftpServer(look_up("eth0"), Files(root).open, broken)
            await server.start()
            return server

        server = thread.call(start())
        try:
            curl(cable, "big.bin", tmp_path / "out")
        finally:
            thread.call(server.close())
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert server.counters["faults"] == 2
