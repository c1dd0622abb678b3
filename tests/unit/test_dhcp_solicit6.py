"""DHCPv6 SOLICITs: firmware's are told from systems', and rubbish from both."""

from pxed.dhcp.classify import Firmware
from pxed.dhcp.solicit6 import Solicit, solicit
from pxed.mac import Mac

MAC = Mac("52:54:00:00:00:61")


def option(code: int, value: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


# What OVMF asks: DUID-UUID, IA_NA, ORO with the boot file's URL, architecture, UNDI, vendor class.
CLIENT_ID = option(1, b"\0\4" + bytes(range(16)))
OVMF = (
    CLIENT_ID + option(3, bytes(12)) + option(6, bytes.fromhex("003b003c00170018"))
    + option(61, b"\0\7") + option(62, b"\1\3\x10")
    + option(16, b"\0\0\1\x57" + b"\0\x20PXEClient:Arch:00007:UNDI:003016")
)  # fmt: skip
SYSTEM = CLIENT_ID + option(3, bytes(12)) + option(6, bytes.fromhex("00170018"))


def frame(options: bytes, *, kind: int = 1, port: int = 547) -> bytes:
    body = bytes((kind, 1, 2, 3)) + options
    udp = b"\x02\x22" + port.to_bytes(2, "big") + (len(body) + 8).to_bytes(2, "big") + b"\0\0"
    head = b"\x60\0\0\0" + (len(body) + 8).to_bytes(2, "big") + b"\x11\x01" + bytes(32)
    macs = bytes.fromhex("333300010002") + bytes.fromhex(MAC.replace(":", ""))
    return macs + b"\x86\xdd" + head + udp + body


def test_firmware() -> None:
    assert solicit(frame(OVMF)) == Solicit(MAC, Firmware.PXE, 7)


def test_firmware_that_boots_by_http() -> None:
    http = OVMF.replace(b"PXEClient:", b"HTTPClient").replace(b"\0\7", b"\0\x10")
    assert solicit(frame(http)) == Solicit(MAC, Firmware.UEFI_HTTP, 16)


def test_a_system_is_no_business_of_ours() -> None:
    assert solicit(frame(SYSTEM)) is None


def test_other_messages() -> None:
    assert solicit(frame(OVMF, kind=3)) is None
    assert solicit(frame(OVMF, port=546)) is None


def test_every_truncation() -> None:
    whole = frame(OVMF)
    for end in range(len(whole)):
        solicit(whole[:end])
