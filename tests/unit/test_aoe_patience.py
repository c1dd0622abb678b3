"""How long ``aoe-fast read`` and ``write`` wait for a disk, by a clock that the test moves."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from aoe_fast import Export, Target, initiator
from aoe_fast.cli import cli
from aoe_fast.frames import Reply, parse
from aoe_fast.initiator import NoAnswer
from tests.aoe_frames import CLIENT, FLUSH_EXT, READ_EXT, SERVER, WRITE_EXT

FLUSH, READ, WRITE = FLUSH_EXT, READ_EXT, WRITE_EXT
STALL = 30.0  # seconds from a request to its answer, where the disk stands still


class Wire:
    """In the place of the packet socket: a target at its other end, and the time."""

    def __init__(self, target: Target, slow: int) -> None:
        self.target = target
        self.slow = slow  # the ATA command whose answers take so long
        self.now = 1000.0
        self.mac, self.mtu = CLIENT, 1500
        self.copies = 0
        """How often its frames came, the first time too."""
        self._answers: list[tuple[float, Reply]] = []

    def close(self) -> None:
        pass

    def send(self, frame: bytes) -> None:
        is_slow = frame[19] == 0 and frame[27] == self.slow
        self.copies += is_slow
        for answer in self.target.handle(frame, SERVER):
            reply = parse(answer)
            assert reply is not None
            self._answers.append((self.now + STALL * is_slow, reply))

    def receive_until(self, end: float, *, once: bool = False) -> Iterator[Reply]:
        due = sorted((each for each in self._answers if each[0] <= end), key=lambda each: each[0])
        for each in due:
            self._answers.remove(each)
            self.now = max(self.now, each[0])
            yield each[1]
        if not (once and due):
            self.now = max(self.now, end)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"o" * 65536)
    return path


@pytest.fixture
def target(disk: Path) -> Iterator[Target]:
    with Export(disk, writable=True) as export:
        target = Target()
        target.set_view(None, {(16, 3): export})
        yield target
        target.set_view(None, {})


def aoe_fast(monkeypatch: pytest.MonkeyPatch, wire: Wire, *words: str) -> BaseException | None:
    """Why the command failed; None if it did not."""
    defaults = initiator.Initiator.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "retries", 5)  # as it is; tests have more patience
    monkeypatch.setattr(initiator, "FrameSocket", lambda *_: wire)
    monkeypatch.setattr(initiator, "time", SimpleNamespace(monotonic=lambda: wire.now))
    done = CliRunner().invoke(cli, [words[0], "-i", "lo", *words[1:]], standalone_mode=False)
    return done.exception


@pytest.mark.parametrize("slow", [WRITE, FLUSH])
def test_a_write_waits_for_a_disk_that_stands_still(
    monkeypatch: pytest.MonkeyPatch, target: Target, disk: Path, tmp_path: Path, slow: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"n" * 4096)
    wire = Wire(target, slow)
    assert aoe_fast(monkeypatch, wire, "write", "16.3", str(source)) is None
    assert wire.now >= 1000 + STALL
    assert disk.read_bytes() == b"n" * 4096 + b"o" * 61440


@pytest.mark.parametrize("slow", [WRITE, FLUSH])
def test_but_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Path, slow: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"n" * 4096)
    wire = Wire(target, slow)
    why = aoe_fast(monkeypatch, wire, "write", "16.3", str(source), "--wait", "20")
    assert isinstance(why, NoAnswer)
    assert 1020 <= wire.now < 1000 + STALL


@pytest.mark.parametrize(("wait", "fails"), [("60", False), ("20", True)])
def test_a_read_does_as_well(
    monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Path, wait: str, fails: bool
) -> None:
    copy = tmp_path / "copy"
    why = aoe_fast(monkeypatch, Wire(target, READ), "read", "16.3", str(copy), "--wait", wait)
    assert isinstance(why, NoAnswer) is fails
    assert (not copy.exists()) if fails else copy.read_bytes() == b"o" * 65536


def test_a_disk_that_is_busy_is_not_asked_every_second(
    monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Path
) -> None:
    """A durable server writes and syncs each copy of a write."""
    monkeypatch.setattr("tests.unit.test_aoe_patience.STALL", 300.0)
    source = tmp_path / "source"
    source.write_bytes(b"n" * 512)
    wire = Wire(target, WRITE)
    why = aoe_fast(monkeypatch, wire, "write", "16.3", str(source), "--wait", "200")
    assert isinstance(why, NoAnswer)
    assert 1200 <= wire.now <= 1201
    assert 5 < wire.copies <= 30  # six in the first five seconds, then 2, 4, 8, 10, 10... apart


@pytest.mark.parametrize("command", ["read", "write"])
def test_who_does_not_answer_at_all_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, target: Target, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"n" * 4096)
    wire = Wire(target, 0)
    why = aoe_fast(monkeypatch, wire, command, "16.9", str(file))
    assert isinstance(why, NoAnswer)
    assert wire.now < 1006, why
