"""Our initiator against Debian's vblade, a target nobody here wrote."""

import ctypes
import os
import random
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aoe_fast.initiator import (
    AtaError,
    ConfigCommand,
    Initiator,
    InterfaceError,
    NoAnswer,
    TargetError,
)
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import Cable, requires

pytestmark = pytest.mark.netns

SECTORS = 4096 + 3


@dataclass
class Peer:
    cable: Cable
    image: Path
    process: "subprocess.Popen[bytes]"


@pytest.fixture
def vblade(cable: Cable, tmp_path: Path) -> Iterator[Peer]:
    """vblade exports a writable image of random bytes as 10.2."""
    requires("vblade")
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    process = cable.srv.popen(["vblade", "10", "2", "eth0", str(image)])
    with cable.cli.inside(), Initiator("eth0", timeout=0.1) as probe:
        probe.device(10, 2)
    yield Peer(cable, image, process)
    process.kill()
    process.wait()


def test_discover(vblade: Peer) -> None:
    with vblade.cable.cli.inside(), Initiator("eth0") as initiator:
        (device,) = initiator.discover(10, 2, wait=PATIENCE)
        assert (device.shelf, device.slot) == (10, 2)
        assert device.scnt == 2
        assert device.bufcnt > 1
        assert eventually(lambda: initiator.discover() == [device])
        assert eventually(lambda: initiator.discover(10) == [device])
        assert initiator.discover(11, wait=0.1) == []


def test_identify(vblade: Peer) -> None:
    with vblade.cable.cli.inside(), Initiator("eth0") as initiator:
        identity = initiator.identify(10, 2)
    assert identity.sectors == SECTORS
    assert identity.lba48
    assert "vblade" in identity.model.lower()
    assert len(identity.raw) == 512


def test_read_everything(vblade: Peer) -> None:
    with vblade.cable.cli.inside(), Initiator("eth0") as initiator:
        assert initiator.read(10, 2, 0, SECTORS) == vblade.image.read_bytes()


def test_jumbo_frames(vblade: Peer, tmp_path: Path) -> None:
    cable = vblade.cable
    for space in (cable.srv, cable.cli):
        space.ip("link set eth0 mtu 9000")
    cable.srv.popen(["vblade", "10", "3", "eth0", str(vblade.image)])
    with cable.cli.inside(), Initiator("eth0", timeout=0.1) as initiator:
        assert initiator.device(10, 3).scnt == 17
        pieces = list(initiator.read_range(10, 3, 0, SECTORS))
    assert len(pieces[0]) == 17 * 512
    assert b"".join(pieces) == vblade.image.read_bytes()


@pytest.mark.parametrize("pace", ["steady", "linux"])
def test_write_and_read_back(vblade: Peer, pace: str) -> None:
    data = random.Random(2).randbytes(700 * 512)
    done: list[int] = []
    with (
        vblade.cable.cli.inside(),
        Initiator("eth0", pace="linux" if pace == "linux" else "steady") as initiator,
    ):
        pieces = [data[:512], data[512 : 512 * 8], data[512 * 8 :]]
        assert initiator.write_range(10, 2, 9, pieces, progress=done.append) == 700
        assert initiator.read(10, 2, 9, 700) == data
    assert sum(done) == 700
    image = vblade.image.read_bytes()
    assert image[9 * 512 : 709 * 512] == data
    assert len(image) == SECTORS * 512


def test_config_string(vblade: Peer) -> None:
    with vblade.cable.cli.inside(), Initiator("eth0", timeout=0.05) as initiator:
        config = initiator.config(10, 2, ConfigCommand.SET, b"lab one")
        assert config is not None
        assert config.string == b"lab one"
        patience, initiator.retries = initiator.retries, 2
        assert initiator.config(10, 2, ConfigCommand.TEST, b"lab") is None
        initiator.retries = patience
        assert initiator.config(10, 2, ConfigCommand.TEST, b"lab one") is not None
        assert initiator.config(10, 2, ConfigCommand.PREFIX, b"lab") is not None
        with pytest.raises(TargetError, match="already set") as refused:
            initiator.config(10, 2, ConfigCommand.SET, b"other")
        assert refused.value.code == 4
        initiator.config(10, 2, ConfigCommand.FORCE, b"other")
        (device,) = initiator.discover(10, 2, wait=PATIENCE)
        assert device.config == b"other"


def test_nobody_there(vblade: Peer) -> None:
    with (
        vblade.cable.cli.inside(),
        Initiator("eth0", timeout=0.02, retries=2) as initiator,
        pytest.raises(NoAnswer, match=r"^9\.9 on eth0: no answer .*3 tries") as silence,
    ):
        initiator.identify(9, 9)
    assert "\n" not in str(silence.value)


def test_target_dies_during_a_copy(vblade: Peer) -> None:
    with vblade.cable.cli.inside(), Initiator("eth0", timeout=0.02) as initiator:
        pieces = initiator.read_range(10, 2, 0, SECTORS)
        next(pieces)  # what is on its way now is far from all
        vblade.process.kill()
        vblade.process.wait()
        initiator.retries = 2
        with pytest.raises(NoAnswer, match=r"^10\.2 read of sector \d+: no answer"):
            list(pieces)


def test_past_the_end_is_an_ata_error(vblade: Peer) -> None:
    with (
        vblade.cable.cli.inside(),
        Initiator("eth0") as initiator,
        pytest.raises(AtaError, match=r"^10\.2 read of sector 4098") as refused,
    ):
        initiator.read(10, 2, SECTORS - 1, 2)
    assert refused.value.status & 1


def test_another_source_mac(vblade: Peer) -> None:
    """One namespace plays two clients at once; each hears only its own answers."""
    macs = [bytes.fromhex("52540000aa01"), bytes.fromhex("52540000aa02")]
    with (
        vblade.cable.cli.inside(),
        Initiator("eth0", source_mac=macs[0]) as one,
        Initiator("eth0", source_mac=macs[1]) as two,
    ):
        image = vblade.image.read_bytes()
        first, second = one.read_range(10, 2, 0, 64), two.read_range(10, 2, 64, 64)
        mixed = [piece for pair in zip(first, second, strict=True) for piece in pair]
        assert b"".join(mixed[0::2]) == image[: 64 * 512]
        assert b"".join(mixed[1::2]) == image[64 * 512 : 128 * 512]


def test_lost_frames_are_sent_again(vblade: Peer) -> None:
    """A kernel filter on our socket loses one answer in twenty (bpf(4) with SKF_AD_RANDOM)."""
    program = [
        (0x20, 0, 0, 0xFFFFF000 + 56),  # A = random
        (0x25, 1, 0, 0xFFFFFFFF // 20),  # A > a twentieth?
        (0x06, 0, 0, 0),  # no: drop
        (0x06, 0, 0, 0xFFFF),  # yes: take it whole
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with vblade.cable.cli.inside(), Initiator("eth0", timeout=0.05, window=16) as initiator:
        initiator.identify(10, 2)
        initiator._link._socket.setsockopt(
            socket.SOL_SOCKET, 26, struct.pack("HL", len(program), ctypes.addressof(code))
        )
        assert initiator.read(10, 2, 0, SECTORS) == vblade.image.read_bytes()
        assert initiator.repeated > 20


def test_what_others_ask_is_not_listened_to(vblade: Peer) -> None:
    """A server looks for others once a minute: its own clients' requests must not pile up there."""
    cable = vblade.cable
    with cable.srv.inside(), Initiator("eth0") as looks:
        with cable.cli.inside(), Initiator("eth0") as asks:
            asks.read(10, 2, 0, 64)
        assert looks._link._poll.poll(0) == []


def test_a_stopped_target_catches_up(vblade: Peer) -> None:
    """Answers to the repetitions of a request come late and twice: no piece is taken twice."""
    with vblade.cable.cli.inside(), Initiator("eth0", timeout=0.05) as initiator:
        image = vblade.image.read_bytes()
        pieces = initiator.read_range(10, 2, 0, SECTORS)
        got = [next(pieces)]
        os.kill(vblade.process.pid, signal.SIGSTOP)

        def wake() -> None:
            eventually(lambda: initiator.repeated > 0)
            os.kill(vblade.process.pid, signal.SIGCONT)

        waker = threading.Thread(target=wake)
        waker.start()
        got += pieces
        waker.join()
        assert b"".join(got) == image
        assert initiator.repeated > 0


def test_no_such_interface(cable: Cable) -> None:
    with cable.cli.inside(), pytest.raises(InterfaceError, match="nope: no such interface"):
        Initiator("nope")


def test_link_down(cable: Cable) -> None:
    cable.cli.ip("link set eth0 down")
    with (
        cable.cli.inside(),
        Initiator("eth0") as initiator,
        pytest.raises(InterfaceError, match="eth0"),
    ):
        initiator.discover()
