"""TFTP: any bytes parse or raise the declared error; no conversation raises anything."""

import contextlib
import random

from hypothesis import given
from hypothesis import strategies as st

from pxed.tftp.codec import Ack, Data, Error, Oack, Packet, Request, TftpError, decode, encode
from pxed.tftp.files import Files
from pxed.tftp.session import Bytes, Peer
from tests.tftp_engines import ENGINES

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
names = words.map(str.lower).filter(lambda name: name.lower() == name)
options = st.dictionaries(names, words, max_size=5)
packets: st.SearchStrategy[Packet] = st.one_of(
    st.builds(Request, words, st.sampled_from(["octet", "netascii"]), options, st.booleans()),
    st.builds(Data, st.integers(0, 65535), st.binary(max_size=600)),
    st.builds(Ack, st.integers(0, 65535)),
    st.builds(Error, st.integers(0, 65535), words),
    st.builds(Oack, options),
)


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(TftpError):
        decode(data)


@given(st.integers(1, 6), st.binary(max_size=200))
def test_any_body(op: int, body: bytes) -> None:
    try:
        packet = decode(op.to_bytes(2, "big") + body)
    except TftpError:
        return
    assert decode(encode(packet)) == packet


@given(packets)
def test_round_trip(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


asked_for = st.dictionaries(
    st.sampled_from(["blksize", "windowsize", "tsize", "timeout", "other"]),
    st.one_of(st.integers(-1, 70_000).map(str), words),
)
said_by_client = st.lists(
    st.one_of(
        st.integers(0, 8).map(lambda n: encode(Ack(n))),
        st.integers(0, 65535).map(lambda n: encode(Ack(n))),
        packets.map(encode),
        st.binary(),
    ),
    max_size=30,
)


@given(st.binary(max_size=3000), asked_for, said_by_client, st.floats(0, 3))
def test_any_conversation_with_both_engines(
    content: bytes, asked: dict[str, str], said: list[bytes], step: float
) -> None:
    """No packet raises anything; both answer every packet with the same bytes and end alike."""
    engines = [
        make(Request("f", options=asked), Bytes(content), Peer("10.0.0.1"), mtu=1500)
        for make in ENGINES.values()
    ]
    now = 0.0
    sent = [engine.start(now, now) for engine in engines]
    for data in said:
        now += round(step, 6)
        for packets_of, engine in zip(sent, engines, strict=True):
            packets_of += engine.receive(data, now, now)
            packets_of += engine.expire(now, now)
    assert sent[0] == sent[1]
    assert len(sent[0]) <= (len(said) * 2 + 1) * 64
    assert all(len(packet) <= 1500 - 28 for packet in sent[0])
    assert [event.kind for event in engines[0].events] == [e.kind for e in engines[1].events]
    ends = [event for event in engines[0].events if event.kind != "tftp-read"]
    assert len(ends) == (1 if engines[0].done else 0)


@given(
    st.sampled_from(list(ENGINES)),
    st.integers(0, 20_000),
    st.integers(8, 1468),
    st.integers(1, 64),
    st.integers(0, 2**32 - 1),
)
def test_acks_in_any_order_deliver_the_file(
    engine: str, size: int, blksize: int, window: int, seed: int
) -> None:
    """A client that acknowledges any prefix of what it has still gets every byte."""
    noise = random.Random(seed)
    content = noise.randbytes(size)
    asked = {"blksize": str(blksize), "windowsize": str(window)}
    session = ENGINES[engine](Request("f", options=asked), Bytes(content), Peer("10.0.0.1"))
    session.start(0, 0)
    got, have = b"", 0
    packets = session.receive(encode(Ack(0)), 0, 0)
    while not session.done:
        for raw in packets[: noise.randint(1, window)]:
            packet = decode(raw)
            assert isinstance(packet, Data)
            assert packet.block == have + 1
            got, have = got + packet.payload, have + 1
        packets = session.receive(encode(Ack(have)), 0, 0)
    assert got == content


@given(st.text(max_size=80))
def test_any_name_is_found_or_refused(name: str) -> None:
    files = Files(None, virtual={"a": b"x"})
    with contextlib.suppress(TftpError):
        assert files.open(name).read(0, 9) == b"x"
