"""One TFTP read, with the loss, duplication and order that a network adds."""

import os
import random
from collections import deque
from pathlib import Path

import pytest

from pxed.events import Kind
from pxed.tftp.codec import Ack, Data, Error, Oack, Request, TftpError, decode, encode
from pxed.tftp.files import Files
from pxed.tftp.session import Bytes, Peer
from tests.tftp_engines import ENGINES, Engine, Session

PEER = Peer("10.77.0.9")


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every conversation is held with both."""
    return ENGINES[request.param]


class Client:
    """A TFTP client after RFC 1350 and 7440, with its own timer, in memory."""

    def __init__(self, blksize: int = 512, window: int = 1) -> None:
        self.content = b""
        self.block = 0
        self.complete = False
        self.duplicates = 0
        self._blksize = blksize
        self._window = window
        self._in_window = 0

    def receive(self, data: bytes) -> list[bytes]:
        packet = decode(data)
        if isinstance(packet, Oack):
            self._blksize = int(packet.options.get("blksize", self._blksize))
            self._window = int(packet.options.get("windowsize", 1))
            return [encode(Ack(0))]
        assert isinstance(packet, Data), packet
        if packet.block != (self.block + 1) & 0xFFFF:
            self.duplicates += 1
            self._in_window = 0
            return [encode(Ack(self.block))]
        self.block += 1
        self._in_window += 1
        self.content += packet.payload
        self.complete = len(packet.payload) < self._blksize
        if self.complete or self._in_window == self._window:
            self._in_window = 0
            return [encode(Ack(self.block))]
        return []


def make(engine: Engine, content: bytes, **options: str) -> Session:
    return engine(Request("f", options=options), Bytes(content), PEER)


def kinds(of: Session) -> list[Kind]:
    return [event.kind for event in of.events]


def run(
    server: Session,
    client: Client,
    noise: random.Random | None = None,
    first: list[bytes] | None = None,
) -> None:
    """Carry packets until the server is done; ``noise`` loses, doubles and swaps them."""
    now = 0.0
    to_client, to_server = deque(first or server.start(now, now)), deque[bytes]()
    for _ in range(200_000):
        if server.done:
            return
        if noise is not None:
            for queue in (to_client, to_server):
                spoil(queue, noise)
        if to_client:
            to_server.extend(client.receive(to_client.popleft()))
        elif to_server:
            now += 0.001
            to_client.extend(server.receive(to_server.popleft(), now, now))
        else:
            now = max(now, server.deadline)
            to_client.extend(server.expire(now, now))
    raise AssertionError("no end")


def spoil(queue: deque[bytes], noise: random.Random) -> None:
    if not queue:
        return
    dice = noise.random()
    if dice < 0.03:
        queue.popleft()
    elif dice < 0.06:
        queue.append(queue[0])
    elif dice < 0.09:
        queue.rotate(1)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 5000])
def test_sizes_around_a_block(engine: Engine, size: int) -> None:
    content = os.urandom(size)
    server, client = make(engine, content), Client()
    run(server, client)
    assert client.content == content
    assert kinds(server) == [Kind.TFTP_READ, Kind.TFTP_DONE]
    assert server.events[-1].detail["bytes"] == size


@pytest.mark.parametrize("window", [1, 2, 4, 7, 64])
def test_windows(engine: Engine, window: int) -> None:
    content = os.urandom(100_000)
    server = make(engine, content, blksize="1468", windowsize=str(window))
    client = Client()
    run(server, client)
    assert client.content == content
    assert client.duplicates == 0


@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("seed", range(10))
def test_bad_network(engine: Engine, seed: int, window: int) -> None:
    content = os.urandom(60_000)
    server = make(engine, content, windowsize=str(window))
    client = Client()
    run(server, client, random.Random(seed))
    assert client.content == content
    assert kinds(server)[-1] is Kind.TFTP_DONE


def test_more_than_65535_blocks_roll_over_to_0(engine: Engine) -> None:
    content = bytes(8 * 66_000 + 3)
    server, client = make(engine, content, blksize="8", windowsize="64"), Client()
    run(server, client)
    assert (len(client.content), client.block) == (len(content), 66_001)


# Options


def test_only_what_was_asked_for_is_agreed(engine: Engine) -> None:
    (packet,) = make(engine, b"x" * 700, tsize="0").start(0, 0)
    assert decode(packet) == Oack({"tsize": "700"})


def test_no_option_no_oack(engine: Engine) -> None:
    (packet,) = make(engine, b"abc").start(0, 0)
    assert decode(packet) == Data(1, b"abc")


def test_unknown_and_bad_options_are_left_out(engine: Engine) -> None:
    (packet,) = make(engine, b"abc", multicast="", blksize="7", timeout="0", windowsize="x").start(
        0, 0
    )
    assert decode(packet) == Data(1, b"abc")


def test_a_block_fits_the_mtu(engine: Engine) -> None:
    assert make(engine, b"", blksize="9000").blksize == 1468
    big = engine(Request("f", options={"blksize": "9000"}), Bytes(b""), PEER, mtu=9000)
    assert big.blksize == 8968
    clamped = engine(
        Request("f", options={"blksize": "1468"}), Bytes(b""), PEER, largest_block=1024
    )
    assert clamped.blksize == 1024


def test_the_window_is_64_at_most(engine: Engine) -> None:
    (packet,) = make(engine, b"", windowsize="65535").start(0, 0)
    assert decode(packet) == Oack({"windowsize": "64"})


def test_netascii_lines(engine: Engine) -> None:
    server = engine(Request("f", "netascii", {"windowsize": "8"}), Bytes(b"a\nb\r"), PEER)
    (packet,) = server.start(0, 0)
    assert decode(packet) == Data(1, b"a\r\nb\r\0")


def test_netascii_has_no_window(engine: Engine) -> None:
    """Whatever it asks for: a line end may lie on both sides of a block's end."""
    server = engine(Request("f", "netascii", {"windowsize": "8"}), Bytes(b"a\n" * 2000), PEER)
    (first,) = server.start(0, 0)
    assert isinstance(decode(first), Data)
    (second,) = server.receive(encode(Ack(1)), 0.1, 0)
    assert isinstance(packet := decode(second), Data)
    assert packet.block == 2


def test_other_modes_are_refused(engine: Engine) -> None:
    with pytest.raises(TftpError, match="use octet"):
        engine(Request("f", "mail"), Bytes(b""), PEER)
    with pytest.raises(TftpError, match="small text"):
        engine(Request("f", "netascii"), Bytes(bytes(2 << 20)), PEER)


# Timers and duplicates


def test_a_duplicate_ack_sends_nothing(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    assert len(server.receive(encode(Ack(1)), 0.1, 0)) == 1
    assert server.receive(encode(Ack(1)), 0.2, 0) == []
    assert server.receive(encode(Ack(0)), 0.2, 0) == []


def test_an_ack_for_what_was_never_sent_is_ignored(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    assert server.receive(encode(Ack(2)), 0.1, 0) == []
    assert server.receive(encode(Ack(40_000)), 0.1, 0) == []


def test_a_partial_ack_goes_back(engine: Engine) -> None:
    server = make(engine, bytes(5000), windowsize="4")
    server.start(0, 0)
    server.receive(encode(Ack(0)), 0, 0)
    packets = [decode(packet) for packet in server.receive(encode(Ack(2)), 0.1, 0)]
    assert [packet.block for packet in packets if isinstance(packet, Data)] == [3, 4, 5, 6]


def test_the_timer_backs_off(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    waits, now = [], 0.0
    while not server.done:
        waits.append(server.deadline - now)
        now = server.deadline
        server.expire(now, 0)
    assert waits == [1, 2, 4, 8, 8, 8, 8]
    assert kinds(server)[-1] is Kind.TFTP_FAILED


def test_the_clients_timeout_is_used(engine: Engine) -> None:
    server = make(engine, b"", timeout="3")
    server.start(0, 0)
    assert server.deadline == 3


def test_progress_resets_the_timer(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    server.expire(1, 0)
    server.receive(encode(Ack(1)), 1.5, 0)
    assert server.deadline == 2.5


def test_too_early_is_nothing(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    assert server.expire(0.5, 0) == []


def test_the_last_ack_may_never_come(engine: Engine) -> None:
    server, now = make(engine, b"abc"), 0.0
    server.start(0, 0)
    while not server.done:
        now = server.deadline
        server.expire(now, now)
    assert kinds(server) == [Kind.TFTP_READ, Kind.TFTP_DONE]


# Ends


@pytest.mark.parametrize("code", [0, 8])
def test_an_abort_after_the_oack_is_a_probe(engine: Engine, code: int) -> None:
    server = make(engine, bytes(5000), tsize="0")
    server.start(0, 0)
    assert server.receive(encode(Error(code, "aborted")), 0.1, 0) == []
    assert kinds(server) == [Kind.TFTP_PROBE]
    assert server.done


def test_an_abort_in_the_middle_is_a_failure(engine: Engine) -> None:
    server = make(engine, bytes(5000), tsize="0")
    server.start(0, 0)
    server.receive(encode(Ack(0)), 0.1, 0)
    server.receive(encode(Ack(1)), 0.1, 0)
    server.receive(encode(Error(3, "disk\x1b full")), 0.2, 0)
    assert server.events[-1].detail["why"] == "the client says: disk? full (code 3)"


def on_disk(tmp_path: Path, engine: Engine, content: bytes, **options: str) -> Session:
    (tmp_path / "f").write_bytes(content)
    return engine(Request("f", options=options), Files(tmp_path).open("f"), PEER)


def test_a_file_that_shrinks_fails(engine: Engine, tmp_path: Path) -> None:
    server = on_disk(tmp_path, engine, bytes(200_000))
    server.start(0, 0)
    os.truncate(tmp_path / "f", 70_000)
    for block in range(1, 300):
        (packet,) = server.receive(encode(Ack(block)), 0.1, 0)
        if server.done:
            break
    assert decode(packet) == Error(0, "the file was changed meanwhile")
    assert kinds(server)[-1] is Kind.TFTP_FAILED


def test_a_file_that_is_replaced_goes_on_as_it_was(engine: Engine, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    server, client = on_disk(tmp_path, engine, content, blksize="1468"), Client()
    first = server.start(0, 0)
    (tmp_path / "new").write_bytes(b"other")
    os.rename(tmp_path / "new", tmp_path / "f")
    run(server, client, first=first)
    assert client.content == content


def test_nobody_gets_the_end_of_a_file_that_was_written_meanwhile(tmp_path: Path) -> None:
    """Only the compiled engine looks at the time of the last change."""
    server = on_disk(tmp_path, ENGINES["compiled"], bytes(2000), windowsize="4")
    server.start(0, 0)
    (tmp_path / "f").write_bytes(b"x" * 2000)
    os.utime(tmp_path / "f", ns=(0, 5))
    (packet,) = server.receive(encode(Ack(0)), 0.1, 0)
    assert decode(packet) == Error(0, "the file was changed meanwhile")


def test_rubbish_is_ignored(engine: Engine) -> None:
    server = make(engine, bytes(5000))
    server.start(0, 0)
    for data in (b"", b"\0\4", b"\0\4\0", b"\0\x09\0\0", b"\xff" * 20):
        assert server.receive(data, 0.1, 0) == []
    assert not server.done


def test_after_the_end_nothing_happens(engine: Engine) -> None:
    server = make(engine, b"abc")
    server.start(0, 0)
    server.receive(encode(Ack(1)), 0.1, 0)
    assert server.receive(encode(Ack(1)), 0.2, 0) == []
    assert server.expire(99, 0) == []
    server.abort("late", 0)
    assert kinds(server) == [Kind.TFTP_READ, Kind.TFTP_DONE]


def test_abort_before_the_first_ack_is_a_probe(engine: Engine) -> None:
    server = make(engine, bytes(5000), tsize="0")
    server.start(0, 0)
    server.abort("port unreachable", 0)
    assert kinds(server) == [Kind.TFTP_PROBE]
