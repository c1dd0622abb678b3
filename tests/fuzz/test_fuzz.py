"""The fuzzer of ``handle`` for a bounded time, and the Python codecs on captured messages."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe_fast.frames import BadReply, Command, parse, parse_ata, parse_config, parse_identity
from pxed.dhcp import codec as dhcp
from pxed.tftp import codec as tftp
from tests.conftest import requires
from tests.fuzz.build import fuzz

CORPUS = Path(__file__).parent / "corpus"
RUNS = 100_000
SECONDS = int(os.environ.get("PXED_FUZZ_SECONDS", "0"))
"""Instead of so many runs, which are the same ones each time."""


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.timeout(SECONDS + 1800)  # also to build it
def test_bounded_fuzzing() -> None:
    """libFuzzer from the seeds, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    requires("clang", root=False)
    limits = [f"-max_total_time={SECONDS}"] if SECONDS else [f"-runs={RUNS}", "-seed=1"]
    done = fuzz(*limits)
    assert done.returncode == 0, done.stderr[-4000:]
    executed = int(done.stderr.partition("number_of_executed_units:")[2].split()[0])
    assert executed > len(seeds("aoe")) if SECONDS else executed >= RUNS


DAMAGE = st.tuples(
    st.integers(0, 2000), st.integers(0, 255), st.integers(0, 2000), st.binary(max_size=40)
)


def damaged(data: bytes, damage: tuple[int, int, int, bytes]) -> bytes:
    """One byte other, cut somewhere, and something behind it."""
    at, value, end, tail = damage
    changed = bytearray(data)
    if changed:
        changed[at % len(changed)] = value
    return bytes(changed[: end % (len(changed) + 1)] if end % 3 == 0 else changed) + tail


@given(data=st.sampled_from(seeds("dhcp")), damage=DAMAGE)
@settings(max_examples=500, deadline=None)
def test_a_captured_message_with_damage(data: bytes, damage: tuple[int, int, int, bytes]) -> None:
    """It parses, or raises the one declared error."""
    try:
        message = dhcp.decode(damaged(data, damage))
    except dhcp.DhcpError:
        return
    assert dhcp.decode(dhcp.encode(message)).options == message.options


@given(data=st.sampled_from(seeds("tftp")), damage=DAMAGE)
@settings(max_examples=500, deadline=None)
def test_a_captured_tftp_packet_with_damage(
    data: bytes, damage: tuple[int, int, int, bytes]
) -> None:
    try:
        packet = tftp.decode(damaged(data, damage))
    except tftp.TftpError:
        return
    assert tftp.decode(tftp.encode(packet)) == packet


@given(data=st.sampled_from(seeds("aoe")), damage=DAMAGE)
@settings(max_examples=500, deadline=None)
def test_a_captured_reply_with_damage(data: bytes, damage: tuple[int, int, int, bytes]) -> None:
    """Our initiator, too, reads what anybody may send."""
    reply = parse(damaged(data, damage))
    if reply is None:
        return
    try:
        if reply.command == Command.CONFIG:
            parse_config(reply.body)
        elif reply.command == Command.ATA:
            parse_identity(parse_ata(reply.body).data)
    except BadReply:
        return
