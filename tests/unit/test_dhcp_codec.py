"""DHCP messages on the wire."""

from ipaddress import IPv4Address

import pytest

from pxed.dhcp.codec import (
    DhcpError,
    Message,
    Op,
    Opt,
    Type,
    decapsulate,
    decode,
    encapsulate,
    encode,
)
from pxed.mac import Mac

MAC = Mac("52:54:00:12:34:56")


def message(**options: bytes) -> Message:
    return Message(op=Op.REQUEST, xid=1, chaddr=MAC, options={Opt.TYPE: b"\1"})


def test_a_message_survives_the_wire() -> None:
    sent = message()
    sent.yiaddr = IPv4Address("10.0.0.9")
    sent.file, sent.sname = b"undionly.kpxe", b"server"
    sent.options[Opt.ROOT_PATH] = b"aoe:e16.0"
    assert decode(encode(sent)) == sent


def test_300_bytes_at_least() -> None:
    assert len(encode(message())) == 300


@pytest.mark.parametrize("size", [0, 1, 235, 239])
def test_truncated_header(size: int) -> None:
    with pytest.raises(DhcpError, match="240 bytes or more"):
        decode(encode(message())[:size])


def test_every_truncation_parses_or_is_refused() -> None:
    sent = message()
    sent.options[Opt.PARAMETERS] = bytes(range(1, 60))
    data = encode(sent)
    for size in range(len(data)):
        try:
            decode(data[:size])
        except DhcpError:
            continue


def test_no_cookie_is_bootp() -> None:
    data = bytearray(encode(message()))
    data[236:240] = b"\0\0\0\0"
    with pytest.raises(DhcpError, match="cookie"):
        decode(bytes(data))


@pytest.mark.parametrize("mac", [b"\1\0\0\0\0\1", b"\xff" * 6, bytes(6)])
def test_a_group_address_is_no_machine(mac: bytes) -> None:
    data = bytearray(encode(message()))
    data[28:34] = mac
    with pytest.raises(DhcpError, match="not a machine"):
        decode(bytes(data))


def test_option_runs_past_the_end() -> None:
    with pytest.raises(DhcpError, match="option 12 runs past"):
        decode(encode(message())[:240] + b"\x0c\x20abc")


def test_repeated_option_is_one_value() -> None:
    data = encode(message())[:240] + b"\x35\1\1\x0c\2ab\x0c\2cd\xff"
    assert decode(data).options[Opt.HOST_NAME] == b"abcd"


def test_long_option_is_split_and_joined() -> None:
    sent = message()
    sent.options[Opt.VENDOR] = bytes(range(256)) * 2
    assert decode(encode(sent, 1500)).options == sent.options


def test_spills_into_file_then_sname() -> None:
    sent = message()
    for code in (Opt.ROOT_PATH, Opt.HOST_NAME, Opt.TEXT):
        sent.options[code] = b"x" * 100
    sent.options[Opt.VENDOR] = b"y" * 50
    sent.options[Opt.DNS] = b"\1\2\3\4"
    data = encode(sent, 576)
    assert len(data) <= 576 - 28
    assert decode(data).options == sent.options


def test_does_not_fit() -> None:
    sent = message()
    sent.file, sent.sname = b"boot", b"server"
    sent.options[Opt.VENDOR] = b"x" * 400
    with pytest.raises(DhcpError, match="do not fit"):
        encode(sent, 576)


def test_the_client_may_take_more() -> None:
    sent = message()
    sent.options[Opt.VENDOR] = b"x" * 400
    sent.options[Opt.MAX_SIZE] = (1472).to_bytes(2, "big")
    assert len(encode(sent, sent.max_size)) > 548


def test_max_size_is_never_below_the_standard() -> None:
    sent = message()
    sent.options[Opt.MAX_SIZE] = b"\0\1"
    assert sent.max_size == 576


def test_bad_overload() -> None:
    with pytest.raises(DhcpError, match="option 52"):
        decode(encode(message())[:240] + b"\x34\1\7\xff")


def test_type_missing_or_odd() -> None:
    sent = message()
    sent.options[Opt.TYPE] = b"\1\2"
    assert sent.type is None
    sent.options[Opt.TYPE] = bytes((Type.INFORM,))
    assert sent.type == Type.INFORM


def test_encapsulation() -> None:
    assert encapsulate({6: b"\x08"}) == b"\x06\x01\x08\xff"
    assert decapsulate(b"\x06\x01\x08\xff\x07\x01\x01") == {6: b"\x08"}
    assert decapsulate(b"\x00\x12\x01\x01\x13\x05\x01") == {0x12: b"\x01"}
    with pytest.raises(DhcpError):
        encapsulate({255: b""})
