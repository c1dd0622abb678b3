"""Views: privacy, replacement, statistics rows."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aoe_fast import AoeError, Export, Target
from tests.aoe_frames import (
    CLIENT,
    IDENTIFY,
    READ,
    SERVER,
    STRANGER,
    WRITE,
    Reply,
    ata,
    config,
    frame,
    mask,
    reserve,
)


def disk(tmp_path: Path, fill: int, writable: bool = False) -> Export:
    path = tmp_path / f"disk-{fill}"
    path.write_bytes(bytes([fill]) * 4096)
    return Export(path, writable=writable)


def data(target: Target, src: bytes, slot: int = 3) -> int | None:
    """The first byte that ``src`` reads, or None for silence."""
    replies = target.handle(ata(READ, 0, 1, src=src, slot=slot), SERVER)
    return Reply(replies[0]).data[0] if replies else None


REQUESTS = {
    "read": lambda src: ata(READ, 0, 1, src=src),
    "write": lambda src: ata(WRITE, 0, 1, src=src, data=bytes(512)),
    "identify": lambda src: ata(IDENTIFY, src=src),
    "bad opcode": lambda src: ata(0x99, src=src),
    "past the end": lambda src: ata(READ, 1 << 40, 1, src=src),
    "config": lambda src: frame(1, config(0), src=src),
    "config to all": lambda src: frame(1, config(0), src=src, shelf=0xFFFF, slot=0xFF),
    "config set": lambda src: frame(1, config(3, b"x"), src=src),
    "mask": lambda src: frame(2, mask(0), src=src),
    "reserve": lambda src: frame(3, reserve(0), src=src),
    "unknown class": lambda src: frame(99, src=src),
    "bad version": lambda src: frame(1, config(0), src=src, flags=0x20),
}


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_private_device_answers_its_owner_alone(
    tmp_path: Path, request_of: Callable[[bytes], bytes]
) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1, writable=True)})
    assert len(target.handle(request_of(CLIENT), SERVER)) == 1
    assert target.handle(request_of(STRANGER), SERVER) == []


def test_one_address_is_another_device_for_each_client(tmp_path: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): disk(tmp_path, 9)})
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    assert data(target, CLIENT) == 1
    assert data(target, STRANGER) == 9


def test_a_view_is_not_added_to_the_default_view(tmp_path: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): disk(tmp_path, 9)})
    target.set_view(CLIENT, {(16, 4): disk(tmp_path, 1)})
    assert data(target, CLIENT) is None


def test_an_empty_view_sees_nothing(tmp_path: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): disk(tmp_path, 9)})
    target.set_view(CLIENT, {})
    assert data(target, CLIENT) is None


def test_a_view_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1), (16, 4): disk(tmp_path, 2)})
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 3)})
    assert data(target, CLIENT) == 3
    assert data(target, CLIENT, slot=4) is None


def test_a_dropped_view_falls_back_to_the_default(tmp_path: Path) -> None:
    target = Target()
    target.set_view(None, {(16, 3): disk(tmp_path, 9)})
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    target.drop_view(CLIENT)
    target.drop_view(CLIENT)
    assert data(target, CLIENT) == 9


def test_a_refused_change_changes_nothing(tmp_path: Path) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    closed = disk(tmp_path, 2)
    closed.close()
    with pytest.raises(AoeError):
        target.set_view(CLIENT, {(16, 4): closed})
    assert data(target, CLIENT) == 1
    assert set(target.rows()) == {(CLIENT, 16, 3)}


@pytest.mark.parametrize("mac", [b"", b"\x02" * 5, b"\x02" * 7, b"\x01" + bytes(5), b"\xff" * 6])
def test_a_bad_mac_is_refused(tmp_path: Path, mac: bytes) -> None:
    with pytest.raises(AoeError, match="MAC"):
        Target().set_view(mac, {(16, 3): disk(tmp_path, 1)})


@pytest.mark.parametrize("address", [(4095, 0), (65535, 0), (-1, 0), (0, 255), (0, -1)])
def test_an_address_that_cannot_be_served_is_refused(
    tmp_path: Path, address: tuple[int, int]
) -> None:
    with pytest.raises(AoeError, match=r"shelf|slot"):
        Target().set_view(None, {address: disk(tmp_path, 1)})


def test_thousands_of_views(tmp_path: Path) -> None:
    target = Target()
    exports = [disk(tmp_path, n) for n in range(8)]
    macs = [b"\x02\0\0\0" + n.to_bytes(2, "big") for n in range(5000)]
    for n, mac in enumerate(macs):
        target.set_view(mac, {(16, 3): exports[n % 8]})
    assert all(data(target, mac) == n % 8 for n, mac in enumerate(macs))
    for mac in macs[:100]:
        target.set_view(mac, {(16, 3): exports[7]})
    assert all(data(target, mac) == 7 for mac in macs[:100])
    for mac in macs[::2]:
        target.drop_view(mac)
    assert all((data(target, mac) is None) == (n % 2 == 0) for n, mac in enumerate(macs))


# Statistics rows.


def row(target: Target, mac: bytes | None = CLIENT, slot: int = 3) -> np.void:
    found: np.void = target.stats[target.rows()[mac, 16, slot]]
    return found


def test_fields_and_row_size() -> None:
    stats = Target().stats
    assert stats.dtype.names == (
        "queries", "identifies", "reads", "writes", "read_bytes", "written_bytes", "errors",
        "first_query_ns", "first_read_ns", "first_write_ns", "last_ns",
        "errors_aoe", "errors_abrt", "errors_idnf", "errors_unc", "shared", "latency",
    )  # fmt: skip
    assert stats.dtype.itemsize == 320
    assert len(stats) == 65536
    assert stats.flags.writeable


def test_each_request_counts_in_its_row(tmp_path: Path) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1, writable=True)})
    for request in (
        frame(1, config(0)),
        ata(IDENTIFY),
        ata(READ, 0, 2),
        ata(READ, 0, 1),
        ata(WRITE, 0, 1, data=bytes(512)),
        ata(READ, 1000, 1),
        frame(99),
    ):
        target.handle(request, SERVER)
    found = row(target)
    counts = list(found.tolist()[:7])
    assert counts == [1, 1, 2, 1, 1536, 512, 2]
    assert 0 < found["first_query_ns"] <= found["first_read_ns"] <= found["first_write_ns"]
    assert found["first_write_ns"] <= found["last_ns"] <= time.monotonic_ns()


def test_a_first_time_stays_until_it_is_cleared(tmp_path: Path) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    data(target, CLIENT)
    first = int(row(target)["first_read_ns"])
    data(target, CLIENT)
    assert row(target)["first_read_ns"] == first
    target.stats[target.rows()[CLIENT, 16, 3]]["first_read_ns"] = 0
    data(target, CLIENT)
    assert row(target)["first_read_ns"] > first


def test_a_replaced_view_keeps_its_rows(tmp_path: Path) -> None:
    target = Target()
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1), (16, 4): disk(tmp_path, 2)})
    data(target, CLIENT)
    before = target.rows()
    target.set_view(CLIENT, {(16, 4): disk(tmp_path, 3), (16, 3): disk(tmp_path, 4)})
    assert target.rows() == before
    data(target, CLIENT)
    assert row(target)["reads"] == 2
    assert row(target, slot=4)["reads"] == 0


def test_a_freed_row_is_used_again_from_zero(tmp_path: Path) -> None:
    target = Target(max_rows=1)
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    data(target, CLIENT)
    target.drop_view(CLIENT)
    assert target.rows() == {}
    target.set_view(STRANGER, {(16, 3): disk(tmp_path, 1)})
    assert row(target, STRANGER)["reads"] == 0


def test_no_row_left_is_a_clear_error(tmp_path: Path) -> None:
    target = Target(max_rows=1)
    target.set_view(CLIENT, {(16, 3): disk(tmp_path, 1)})
    with pytest.raises(AoeError, match="1 statistics rows are in use"):
        target.set_view(STRANGER, {(16, 3): disk(tmp_path, 1)})
    assert data(target, CLIENT) == 1
    assert data(target, STRANGER) is None


def test_stats_outlive_their_target() -> None:
    stats = Target().stats
    stats[0]["reads"] = 5
    assert stats[0]["reads"] == 5
