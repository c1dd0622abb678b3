"""What real initiators send to find their disk, packet by packet, and what they must get."""

from pathlib import Path

import pytest

from aoe_fast import Export, Target
from tests.aoe_frames import BROADCAST, IDENTIFY, READ, READ_EXT, SERVER, Reply, ata, config, frame

SECTORS = 64


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
    target = Target()
    target.set_view(None, {(16, 3): Export(path)})
    return target


def ask(target: Target, request: bytes, mtu: int = 1500) -> Reply:
    (raw,) = target.handle(request, SERVER, mtu)
    assert len(raw) >= 60
    return Reply(raw)


@pytest.mark.parametrize(("mtu", "most"), [(1500, 2), (4470, 8), (9000, 16)])
def test_winvblock_probing(target: Target, mtu: int, most: int) -> None:
    """No config query: IDENTIFY to everybody, then ever longer reads until one comes up short.

    WinVBlock looks at lengths alone, so the refusal must be a short frame and not silence.
    """
    found = ask(target, ata(IDENTIFY, 0, 1, shelf=0xFFFF, slot=0xFF, dst=BROADCAST, tag=5), mtu)
    assert (found.address, found.tag, found.src) == ((16, 3), 5, SERVER)
    words = [int.from_bytes(found.data[i : i + 2], "little") for i in range(0, 512, 2)]
    assert sum(words[100 + i] << 16 * i for i in range(4)) == SECTORS
    count = 1
    while True:
        reply = ask(target, ata(READ_EXT, 0, count, tag=count), mtu)
        assert reply.tag == count
        if len(reply.raw) < 36 + 512 * count:
            break
        count += 1
    assert count - 1 == most
    assert len(reply.raw) == 60


def test_winvblock_repeats_a_tag(target: Target) -> None:
    """Up to 65 in flight, and the same tag again after a timeout: each copy is answered alike."""
    requests = [ata(READ_EXT, n % SECTORS, 1, tag=n) for n in range(65)]
    first = [target.handle(request, SERVER) for request in requests]
    again = [target.handle(request, SERVER) for request in requests]
    assert first == again
    assert all(len(replies) == 1 for replies in first)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_sancheck_pads_identify_to_the_mtu(target: Target, mtu: int) -> None:
    """aoe-sancheck finds the largest frame that comes through: IDENTIFYs padded step by step."""
    request = ata(IDENTIFY, 0, 1)
    for size in range(len(request), mtu + 14, 97):
        reply = ask(target, request.ljust(size, b"\xee"), mtu)
        assert (reply.status, len(reply.data)) == (0x40, 512)


def test_ipxe_finds_and_reads(target: Target) -> None:
    """iPXE: config to everybody, IDENTIFY, two sectors at a time, either opcode."""
    found = ask(target, frame(1, config(0), dst=BROADCAST))
    assert found.src == SERVER
    assert found.body[4] >= 1
    identity = ask(target, ata(IDENTIFY, aflags=0))
    assert identity.status & 1 == 0
    for opcode, aflags in ((READ, 0), (READ_EXT, 0x40)):
        assert ask(target, ata(opcode, 4, 2, aflags=aflags)).data == b"\4" * 512 + b"\5" * 512


def test_linux_probes_a_shunned_path_without_data(target: Target) -> None:
    """Its probe of a silent target is READ of sector 0; any good status brings the path back."""
    reply = ask(target, ata(READ, 0, 1, aflags=0))
    assert reply.status & 0xA9 == 0
    reply = ask(target, ata(READ, 0, 0, aflags=0))
    assert reply.status == 0x41, "a count of zero is an answer, not silence"


def test_aoeping_reads_the_config_with_junk_in_the_length(target: Target) -> None:
    assert ask(target, frame(1, config(0, length=0xFFFF))).error == 0


def test_linux_never_gets_a_shelf_that_it_discards_nor_a_window_of_zero(target: Target) -> None:
    reply = ask(target, frame(1, config(0), shelf=0xFFFF, slot=0xFF, dst=BROADCAST))
    assert reply.address[0] != 4095
    assert int.from_bytes(reply.body[0:2], "big") >= 2
