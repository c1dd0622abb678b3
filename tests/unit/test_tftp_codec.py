"""TFTP packets on the wire."""

import pytest

from pxed.tftp.codec import Ack, Data, Error, Oack, Packet, Request, TftpError, decode, encode


@pytest.mark.parametrize(
    "packet",
    [
        Request("boot/undionly.kpxe", options={"tsize": "0", "blksize": "1468"}),
        Request("x", mode="netascii", write=True),
        Data(65535, b"payload"),
        Data(1, b""),
        Ack(0),
        Error(8, "User aborted the transfer"),
        Oack({"blksize": "1468"}),
    ],
)
def test_round_trip(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


def test_block_numbers_roll_over() -> None:
    assert decode(encode(Data(65536 + 7, b""))) == Data(7, b"")


def test_ovmf_request() -> None:
    data = b"\0\1snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0"
    options = {"tsize": "0", "blksize": "1468", "windowsize": "4"}
    assert decode(data) == Request("snponly.efi", options=options)


def test_option_names_and_mode_in_any_case() -> None:
    assert decode(b"\0\1f\0OCTET\0BLKSIZE\x00512\0") == Request("f", options={"blksize": "512"})


def test_rubbish_after_the_last_string() -> None:
    assert decode(b"\0\1f\0octet\0\xff\xff") == Request("f")


@pytest.mark.parametrize(
    "data", [b"", b"\0\1", b"\0\1\0\0", b"\0\1file\0", b"\0\1\0octet\0", b"\0\x09ab", b"\xff" * 9]
)
def test_rubbish(data: bytes) -> None:
    with pytest.raises(TftpError):
        decode(data)


def test_a_nul_cannot_be_sent() -> None:
    with pytest.raises(TftpError):
        encode(Error(0, "a\0b"))
