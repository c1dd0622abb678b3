"""Any bytes as a frame: never a crash, never an answer to an answer, never a byte too many."""

import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe_fast import Export, Target
from tests.aoe_frames import CLIENT, SERVER, Reply, frame

SECTORS = 16


def make(**options: Any) -> Target:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SECTORS * 512)
        target = Target(**options)
        export = Export(file.name, writable=True, durability="writeback")
        target.set_view(None, {(16, 3): export, (16, 4): export})
    return target


@pytest.fixture(scope="module")
def target() -> Target:
    return make(wire_config=True, wire_reserve=True)


@pytest.fixture(scope="module")
def locked() -> Target:
    """Nothing that a frame does can shut the next one out."""
    return make()


def check(target: Target, request: bytes) -> None:
    replies = target.handle(request, SERVER)
    if len(request) < 24 or request[14] & 8:
        assert replies == []
    for raw in replies:
        reply = Reply(raw)
        assert 60 <= len(raw) <= 14 + 1500
        assert reply.flags & 8
        assert reply.dst == request[6:12]
        assert reply.src == SERVER
        assert raw[20:24] == request[20:24]


@given(st.binary(max_size=1600))
@settings(max_examples=300, deadline=None)
def test_any_bytes(target: Target, request_bytes: bytes) -> None:
    check(target, request_bytes)


@given(
    command=st.integers(0, 5),
    flags=st.sampled_from([0x10, 0x10, 0x10, 0x18, 0x20, 0x1F]),
    shelf=st.sampled_from([16, 0xFFFF, 17]),
    slot=st.sampled_from([3, 4, 0xFF, 5]),
    body=st.binary(max_size=1100),
)
@settings(max_examples=1000, deadline=None)
def test_any_body_of_any_class(
    target: Target, command: int, flags: int, shelf: int, slot: int, body: bytes
) -> None:
    check(target, frame(command, body, flags=flags, shelf=shelf, slot=slot, src=CLIENT))


@given(
    opcode=st.sampled_from([0x20, 0x24, 0x30, 0x34, 0xEC, 0xE5, 0xE7, 0xEA]) | st.integers(0, 255),
    aflags=st.integers(0, 255),
    count=st.integers(0, 4) | st.integers(0, 255),
    lba=st.integers(0, SECTORS + 1).map(lambda n: n.to_bytes(6, "little"))
    | st.binary(min_size=6, max_size=6),
    data=st.binary(max_size=1100),
)
@settings(max_examples=1000, deadline=None)
def test_any_ata_command(
    locked: Target, opcode: int, aflags: int, count: int, lba: bytes, data: bytes
) -> None:
    body = bytes([aflags, 0, count, opcode]) + lba + b"\0\0" + data
    check(locked, frame(0, body))
