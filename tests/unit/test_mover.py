"""The thread that moves files: over loopback sockets, no privilege needed."""

import os
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aoe_fast import AoeError
from aoe_fast.mover import Mover
from aoe_fast.transfer import Transfer

CONTENT = os.urandom(200_000)


@pytest.fixture
def mover() -> Iterator[Mover]:
    mover = Mover()
    mover.start()
    yield mover
    mover.stop()
    mover.stop()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's connected socket and the client's."""
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with ours, theirs:
        for udp in (ours, theirs):
            udp.bind(("127.0.0.1", 0))
        ours.connect(theirs.getsockname())
        theirs.connect(ours.getsockname())
        theirs.settimeout(60)
        yield ours, theirs


def ended(mover: Mover, transfer: Transfer) -> str:
    """Wait for the end; the news are read on the way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        select.select([mover], [], [], 0.1)
        if transfer in mover.news() and transfer.end:
            return transfer.end
    raise AssertionError("no end")


def load(theirs: socket.socket, blksize: int, window: int) -> bytes:
    """What a client gets that acknowledges whole windows."""
    got, block = bytearray(), 0
    while True:
        packet = theirs.recv(65536)
        assert packet[:2] == b"\0\3"
        assert int.from_bytes(packet[2:4], "big") == (block + 1) & 0xFFFF
        block += 1
        got += packet[4:]
        last = len(packet) < blksize + 4
        if last or block % window == 0:
            theirs.send(b"\0\4" + (block & 0xFFFF).to_bytes(2, "big"))
        if last:
            return bytes(got)


@pytest.mark.parametrize(("blksize", "window"), [(512, 1), (1468, 16), (1468, 64), (60_000, 2)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_file_arrives(
    mover: Mover, pair: tuple[socket.socket, socket.socket], tmp_path: Path,
    blksize: int, window: int, on_disk: bool,
) -> None:  # fmt: skip
    ours, theirs = pair
    (tmp_path / "f").write_bytes(CONTENT)
    with (tmp_path / "f").open("rb") as file:
        source = file.fileno() if on_disk else CONTENT
        transfer = Transfer(source, len(CONTENT), blksize=blksize, windowsize=window, wait=100)
        mover.add(transfer, ours.fileno())
        assert load(theirs, blksize, window) == CONTENT
        assert ended(mover, transfer) == "complete"
    assert transfer.acked == len(CONTENT) // blksize + 1


def test_more_than_65535_blocks(mover: Mover, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    content = bytes(8 * 66_000)
    transfer = Transfer(content, len(content), blksize=8, windowsize=64, wait=100)
    mover.add(transfer, ours.fileno())
    assert load(theirs, 8, 64) == content
    assert ended(mover, transfer) == "complete"


def test_the_timer_repeats_and_gives_up(
    mover: Mover, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    transfer = Transfer(CONTENT, len(CONTENT), wait=0.01)
    mover.add(transfer, ours.fileno())
    began = time.monotonic()
    assert ended(mover, transfer) == "silent"
    assert time.monotonic() - began > 0.6  # 0.01 + 0.02 + ... + 0.64
    theirs.setblocking(False)
    same = {theirs.recv(2048) for _ in range(7)}
    assert same == {b"\0\3\0\1" + CONTENT[:512]}
    with pytest.raises(BlockingIOError):
        theirs.recv(2048)
    assert transfer.repeats == 6


def test_a_duplicate_acknowledgement_sends_nothing(
    mover: Mover, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    mover.add(Transfer(CONTENT, len(CONTENT), wait=100), ours.fileno())
    theirs.recv(2048)
    for _ in range(5):
        theirs.send(b"\0\4\0\1")
    assert theirs.recv(2048)[:4] == b"\0\3\0\2"
    theirs.settimeout(0.1)
    with pytest.raises(TimeoutError):
        theirs.recv(2048)


def test_a_client_that_is_gone(mover: Mover, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    transfer = Transfer(CONTENT, len(CONTENT))
    mover.add(transfer, ours.fileno())
    assert ended(mover, transfer) == "gone"


def test_stop_from_outside(mover: Mover, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    transfer = Transfer(CONTENT, len(CONTENT), wait=100)
    mover.add(transfer, ours.fileno())
    theirs.recv(2048)
    mover.end(transfer)
    mover.end(transfer)
    assert ended(mover, transfer) == "stopped"
    mover.end(transfer)
    # The same socket again, in the same breath as its end.
    again = Transfer(CONTENT, 100, wait=100)
    mover.add(again, ours.fileno())
    assert theirs.recv(2048) == b"\0\3\0\1" + CONTENT[:100]


def test_starting_over_on_one_socket(
    mover: Mover, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The orders are carried out in their sequence: the old transfer leaves before the next."""
    ours, theirs = pair
    running = None
    for size in range(1, 200):
        if running is not None:
            mover.end(running)
        running = Transfer(CONTENT, size, wait=100)
        mover.add(running, ours.fileno())
        while len(theirs.recv(2048)) != size + 4:
            pass
        mover.news()


def test_stopped_in_the_same_breath_as_begun(
    mover: Mover, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The thread finds both orders at once, most times: none of them may be lost."""
    ours, theirs = pair
    for size in range(1, 500):
        stopped = Transfer(CONTENT, 100, wait=100)
        mover.add(stopped, ours.fileno())
        mover.end(stopped)
        after = Transfer(CONTENT, size, blksize=1024, wait=100)
        mover.add(after, ours.fileno())
        assert ended(mover, stopped) == "stopped"
        while len(theirs.recv(2048)) != size + 4:
            pass
        assert after.end == ""
        mover.end(after)
        assert ended(mover, after) == "stopped"


def test_orders_that_cross_with_ends(mover: Mover) -> None:
    """Many clients that load, vanish, answer rubbish or are stopped at any moment."""
    noise = random.Random(5)
    lines: dict[Transfer, tuple[socket.socket, socket.socket]] = {}
    ends: Counter[str] = Counter()
    begun = 0
    while begun < 1500 or lines:
        if begun < 1500 and len(lines) < 40:
            ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
            theirs.bind(("127.0.0.1", 0))
            theirs.setblocking(False)
            ours.connect(theirs.getsockname())
            theirs.connect(ours.getsockname())
            transfer = Transfer(CONTENT, noise.randrange(4000), windowsize=noise.randrange(1, 9))
            lines[transfer] = ours, theirs
            mover.add(transfer, ours.fileno())
            begun += 1
        transfer = noise.choice(list(lines))
        theirs = lines[transfer][1]
        with suppress(OSError):
            match noise.randrange(12):
                case 0:
                    mover.end(transfer)
                case 1:
                    theirs.close()
                case 2:
                    theirs.send(b"\0\5\0\3no" + noise.randbytes(noise.randrange(700)))
                case 3:
                    theirs.send(noise.randbytes(6))
                case _:
                    theirs.send(b"\0\4" + theirs.recv(2048)[2:4])
        for told in mover.news():
            if told.end and told in lines:
                ends[told.end] += 1
                for udp in lines.pop(told):
                    udp.close()
    assert ends.total() == 1500
    assert {"complete", "stopped", "gone", "refused"} <= ends.keys()


def test_the_end_of_the_mover_ends_its_transfers(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    mover = Mover(spin_us=0)
    mover.start()
    transfer = Transfer(CONTENT, len(CONTENT), wait=100)
    mover.add(transfer, ours.fileno())
    theirs.recv(2048)
    mover.stop()
    assert mover.news() == [transfer]
    assert transfer.end == "stopped"
    with pytest.raises(RuntimeError):
        mover.add(Transfer(b"", 0), ours.fileno())


def test_what_cannot_be_is_refused(mover: Mover) -> None:
    for wrong in ({"blksize": 7}, {"blksize": 70_000}, {"windowsize": 0}, {"wait": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} "):
            Transfer(b"", 0, **wrong)
    with pytest.raises(ValueError, match="3 bytes cannot give 4"):
        Transfer(b"abc", 4)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Transfer(-1, 4)
    transfer = Transfer(b"", 0)
    mover.add(transfer, -1)
    assert ended(mover, transfer) == "gone"
    with pytest.raises(RuntimeError):
        mover.add(transfer, 0)


def test_no_room_for_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    mover, before = Mover(spin_us=0), len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(AoeError, match="no more threads"):
            mover.start()
    assert len(os.listdir("/proc/self/fd")) == before
    mover.stop()
    mover.start()
    mover.stop()
