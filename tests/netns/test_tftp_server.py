"""The TFTP server against real clients: curl, tftp-hpa, atftp, and raw packets for the rest."""

import logging
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aoe_fast.mover import Mover
from aoe_fast.transfer import Transfer
from pxed.errors import HostError
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.net.link import look_up
from pxed.net.tftp import TftpServer
from pxed.net.thread import LoopThread
from pxed.tftp.codec import Ack, Data, Error, Oack, Packet, Request, decode, encode
from pxed.tftp.files import Files
from tests.aoe_peer import eventually
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
def serving(cable: Cable, root: Path, **options: Any) -> Iterator[tuple[TftpServer, list[Event]]]:
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    events: list[Event] = []
    with LoopThread(cable.srv.inside()) as thread:

        async def start() -> TftpServer:
            files = Files(root, virtual={"boot.ipxe": b"#!ipxe\n"})
            server = TftpServer(look_up("eth0"), files.open, events.append, **options)
            await server.start()
            return server

        server = thread.call(start())
        try:
            yield server, events
        finally:
            thread.call(server.close())
            thread.call(server.close())
            assert server.sessions == 0
            assert server.counters["faults"] == 0


def kinds(events: list[Event], last: Kind) -> list[Kind]:
    """The kinds of all events once ``last`` has come."""
    eventually(lambda: bool(events) and events[-1].kind is last, 60)
    return [event.kind for event in events]


def expect(udp: socket.socket, wanted: Packet) -> Any:
    """The next packet is ``wanted``, but for what the server says again as this client is slow.

    Where it comes from.
    """
    udp.settimeout(60)
    while True:
        data, source = udp.recvfrom(65536)
        if (packet := decode(data)) == wanted:
            return source
        assert isinstance(packet, (Oack, Data)), packet
        if isinstance(packet, Data) and isinstance(wanted, Data):
            assert packet.block < wanted.block, packet


def curl(cable: Cable, name: str, out: Path, *options: str, check: bool = True) -> int:
    requires("curl")
    command = ["curl", "-sS", "-m", "60", *options, "-o", str(out), f"tftp://10.77.0.1/{name}"]
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
        assert set(kinds(events, Kind.TFTP_MISSING)) == {Kind.TFTP_MISSING}


def test_a_missing_file_is_no_news(
    cable: Cable, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Pi asks for a dozen that nobody has: that is for whoever looks for something."""
    caplog.set_level(logging.DEBUG, "pxed.tftp")
    with serving(cable, root) as (server, events):
        curl(cable, "kernel7l.img", tmp_path / "out", check=False)
        kinds(events, Kind.TFTP_MISSING)
        curl(cable, "note.txt", tmp_path / "out")
        kinds(events, Kind.TFTP_DONE)
        assert server.counters["missing"] >= 1
        assert server.counters["failed"] == 0
    about = {record.levelno for record in caplog.records if "kernel7l" in record.getMessage()}
    assert about == {logging.DEBUG}
    assert [r.levelno for r in caplog.records if "tftp-done" in r.getMessage()] == [logging.INFO]


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
            ["atftp", *options, "-g", "-r", "big.bin", "-l", out, "10.77.0.1"], timeout=120
        )
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_atftp_with_loss(cable: Cable, root: Path, tmp_path: Path) -> None:
    """The link holds less than half a window and drops the rest: windows go back, all is whole."""
    requires("atftp", "tc")
    narrow = "tc qdisc add dev eth0 root tbf rate 1mbit burst 3k limit 8k"
    if cable.srv.run(narrow.split(), check=False).returncode:
        pytest.skip("needs the kernel's tbf")
    out = str(tmp_path / "out")
    options = ["--option", "blksize 1428", "--option", "windowsize 16", "--option", "timeout 1"]
    (root / "part.bin").write_bytes(CONTENT[:30_000])
    with serving(cable, root) as (server, _):
        server.mover.segmenting = False
        cable.cli.run(
            ["atftp", *options, "-g", "-r", "part.bin", "-l", out, "10.77.0.1"], timeout=120
        )
    dropped = cable.srv.run(["tc", "-s", "qdisc", "show", "dev", "eth0"]).stdout
    assert "dropped 0" not in dropped
    assert (tmp_path / "out").read_bytes() == CONTENT[:30_000]


@pytest.mark.parametrize("blksize", [None, 1400])
def test_busybox(cable: Cable, root: Path, tmp_path: Path, blksize: int | None) -> None:
    requires("busybox")
    options = [] if blksize is None else ["-b", str(blksize)]
    get = ["busybox", "tftp", "-g", "-r", "big.bin", "-l", str(tmp_path / "out"), *options]
    with serving(cable, root):
        cable.cli.run([*get, "10.77.0.1"])
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_probe_then_read_from_one_port(cable: Cable, root: Path) -> None:
    """OVMF's way: ask for the size, abort, ask again."""
    ask = Request("even.bin", options={"tsize": "0", "blksize": "1468"})
    with (
        serving(cable, root) as (_, events),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(60)
        udp.sendto(encode(ask), ("10.77.0.1", 69))
        data, server = udp.recvfrom(2048)
        assert decode(data) == Oack({"tsize": "5120", "blksize": "1468"})
        udp.sendto(encode(Error(8, "User aborted the transfer")), server)
        assert kinds(events, Kind.TFTP_PROBE) == [Kind.TFTP_PROBE]
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        server = expect(udp, Data(1, CONTENT[:512]))
        udp.sendto(encode(Ack(1)), server)
        expect(udp, Data(2, CONTENT[512:1024]))


def test_a_repeated_request_starts_over_on_the_same_port(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root) as (server, _),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(60)
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        first = udp.recvfrom(2048)
        udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        assert udp.recvfrom(2048) == first
        assert server.sessions == 1


def test_a_client_that_vanishes_is_noticed(cable: Cable, root: Path) -> None:
    with serving(cable, root) as (_, events):
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(60)
            udp.sendto(encode(Request("big.bin")), ("10.77.0.1", 69))
            udp.recv(2048)
        # The port is closed: the next retransmission comes back as ICMP port unreachable.
        assert kinds(events, Kind.TFTP_FAILED)[-1] is Kind.TFTP_FAILED


def ask(udp: socket.socket, name: str = "big.bin", **options: str) -> tuple[Packet, Any]:
    udp.settimeout(60)
    udp.sendto(encode(Request(name, options=options)), ("10.77.0.1", 69))
    data, source = udp.recvfrom(65536)
    return decode(data), source


def test_who_is_taking_a_file(cable: Cable, root: Path) -> None:
    """Not who has only asked, and nobody any more once it has all."""
    mac, other = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")
    with (
        serving(cable, root, mac_of=lambda ip: mac) as (server, events),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        packet, source = ask(udp, "even.bin")
        assert isinstance(packet, Data)
        assert not server.loads(mac)
        udp.sendto(encode(Ack(1)), source)
        assert eventually(lambda: server.loads(mac))
        assert not server.loads(other)
        for number in range(2, 12):
            expect(udp, Data(number, CONTENT[:5120][512 * (number - 1) : 512 * number]))
            udp.sendto(encode(Ack(number)), source)
        assert Kind.TFTP_DONE in kinds(events, Kind.TFTP_DONE)
        assert eventually(lambda: server.sessions == 0)
        assert not server.loads(mac)


def test_one_clients_blocks_are_clamped(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root, largest_block=lambda mac: 1024) as _,
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        packet, _ = ask(udp, blksize="1468")
        assert packet == Oack({"blksize": "1024"})


def test_a_file_truncated_while_it_is_sent(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root) as (_, events),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        _, server = ask(udp)
        os.truncate(root / "big.bin", 700)
        udp.sendto(encode(Ack(1)), server)
        expect(udp, Error(0, "the file was changed meanwhile"))
        assert kinds(events, Kind.TFTP_FAILED)[-1] is Kind.TFTP_FAILED


def test_a_file_replaced_while_it_is_sent(cable: Cable, root: Path, tmp_path: Path) -> None:
    with (
        serving(cable, root),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        _, server = ask(udp)
        (root / "other").write_bytes(b"x" * 2000)
        os.rename(root / "other", root / "big.bin")
        udp.sendto(encode(Ack(1)), server)
        expect(udp, Data(2, CONTENT[512:1024]))


def test_rubbish_on_a_transfers_port(cable: Cable, root: Path) -> None:
    """Of any bytes at all: the transfer goes on, or ends by an ERROR packet."""
    noise = random.Random(7)
    with (
        serving(cable, root) as (server, events),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        _, port = ask(udp)
        for _ in range(2000):
            data = bytes((0, noise.choice((0, 1, 2, 3, 6, 7, 9)))) + noise.randbytes(
                noise.randrange(600)
            )
            udp.sendto(noise.choice((data, noise.randbytes(noise.randrange(1, 9))[1:])), port)
        udp.sendto(encode(Ack(1)), port)
        while (packet := decode(udp.recv(2048))) != Data(2, CONTENT[512:1024]):
            if packet == Data(1, CONTENT[:512]):  # the timer, on a slow machine
                udp.sendto(encode(Ack(1)), port)
            else:
                assert packet == Error(4, "this is a read transfer")
        udp.sendto(encode(Error(3, "disk full")), port)
        kinds(events, Kind.TFTP_FAILED)
        assert events[-1].detail["why"] == "the client says: disk full (code 3)"
        assert server.counters["received"] == 1


def test_rubbish_on_port_69(cable: Cable, root: Path, tmp_path: Path) -> None:
    noise = random.Random(8)
    with serving(cable, root) as (server, _):
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for _ in range(1000):
                head = bytes((0, noise.randrange(8)))
                udp.sendto(head + noise.randbytes(noise.randrange(700)), ("10.77.0.1", 69))
        curl(cable, "even.bin", tmp_path / "out")
        assert server.counters["received"] > 500


def test_a_closed_server_ends_what_runs(cable: Cable, root: Path) -> None:
    with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        with serving(cable, root) as (_, events):
            ask(udp)
        assert events[-1].kind is Kind.TFTP_FAILED
        assert events[-1].detail["why"] == "the server stops"


# One port for everything


def test_single_port(cable: Cable, root: Path, tmp_path: Path) -> None:
    """What a client behind NAT needs: every packet comes from port 69."""
    with serving(cable, root, single_port=True) as (_, events):
        curl(cable, "big.bin", tmp_path / "out", "--tftp-blksize", "1468")
        assert (tmp_path / "out").read_bytes() == CONTENT
        assert kinds(events, Kind.TFTP_DONE)[-1] is Kind.TFTP_DONE
        with cable.cli.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("10.77.0.1", 69))  # hears this port and no other
            udp.send(encode(Request("even.bin")))
            for block in range(1, 11):
                expect(udp, Data(block, CONTENT[(block - 1) * 512 : block * 512]))
                udp.send(encode(Ack(block)))
            expect(udp, Data(11, b""))


def test_single_port_of_many_at_once(cable: Cable, root: Path) -> None:
    """All of one address, as behind a router."""
    with (
        serving(cable, root, single_port=True) as (server, _),
        cable.cli.inside(),
        ExitStack() as stack,
    ):
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(40)
        ]
        for udp in sockets:
            udp.sendto(encode(Request("even.bin")), ("10.77.0.1", 69))
        for udp in sockets:
            expect(udp, Data(1, CONTENT[:512]))
        for udp in sockets:
            udp.sendto(encode(Ack(1)), ("10.77.0.1", 69))
        for udp in sockets:
            expect(udp, Data(2, CONTENT[512:1024]))
        assert server.sessions == 40


def test_single_port_starts_over_when_asked_again(cable: Cable, root: Path) -> None:
    with (
        serving(cable, root, single_port=True) as (server, _),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        for _ in range(3):
            packet, source = ask(udp, "even.bin", tsize="0")
            assert packet == Oack({"tsize": "5120"})
            assert source == ("10.77.0.1", 69)
        assert server.sessions == 1


def test_single_port_still_finds_another_server(cable: Cable, root: Path) -> None:
    with cable.srv.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("10.77.0.1", 69))
        with (
            pytest.raises(HostError, match="port 69/udp is in use"),
            serving(cable, root, single_port=True),
        ):
            pass


def test_windows_without_segmentation(cable: Cable, root: Path, tmp_path: Path) -> None:
    """A kernel or an interface without UDP_SEGMENT sends block by block."""
    requires("atftp")
    out = str(tmp_path / "out")
    get = ["atftp", "--option", "windowsize 16", "-g", "-r", "big.bin", "-l", out, "10.77.0.1"]
    with serving(cable, root) as (server, _):
        server.mover.segmenting = False
        cable.cli.run(get)
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("segmenting", [True, False])
def test_a_window_that_the_socket_cannot_hold_leaves_bit_by_bit(
    cable: Cable, segmenting: bool
) -> None:
    """On a slow link the socket's buffer fills up; what is left of the window follows by itself."""
    requires("tc")
    slow = "tc qdisc add dev eth0 root tbf rate 80mbit burst 8k limit 4m"
    if cable.srv.run(slow.split(), check=False).returncode:
        pytest.skip("needs the kernel's tbf")
    cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    mover = Mover(spin_us=0)
    with ExitStack() as stack:
        with cable.srv.inside():
            ours = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            ours.bind(("10.77.0.1", 0))
        with cable.cli.inside():
            theirs = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            theirs.bind(("10.77.0.2", 0))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        ours.connect(theirs.getsockname())
        theirs.settimeout(60)
        mover.start()
        stack.callback(mover.stop)
        mover.segmenting = segmenting
        # Nothing would be repeated within the test.
        transfer = Transfer(CONTENT, 300_000, blksize=1400, windowsize=64, wait=200)
        mover.add(transfer, ours.fileno())
        got = bytearray()
        for block in range(1, 300_000 // 1400 + 2):
            packet = theirs.recv(2048)
            assert packet[2:4] == block.to_bytes(2, "big")
            got += packet[4:]
            if block % 64 == 0:
                theirs.sendto(encode(Ack(block)), ours.getsockname())
    assert got == CONTENT[:300_000]


def test_the_answer_comes_from_the_address_that_was_asked(cable: Cable, root: Path) -> None:
    cable.srv.ip("addr add 10.77.0.7/24 dev eth0")
    with (
        serving(cable, root),
        cable.cli.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.settimeout(60)
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
    assert server.counters["faults"] >= 2  # its begin and its end
