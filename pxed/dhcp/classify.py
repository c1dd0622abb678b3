"""Who is asking: the firmware behind a DHCP message. Pure; the order of the tests matters.

A Raspberry Pi says PXE architecture 0 like a PC, and iPXE says PXEClient too, so the special ones
come first.
"""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from pxed.dhcp.codec import Message, Opt, decapsulate


class Firmware(StrEnum):
    """What speaks: the value of ``Event.detail["firmware"]``."""

    RPI = "rpi"
    IPXE = "ipxe"
    UEFI_HTTP = "uefi-http"
    PXE = "pxe"
    OTHER = "other"  # an operating system, a printer, a telephone


class Feature(IntEnum):
    """iPXE's feature indicators inside option 175."""

    AOE = 0x12
    HTTP = 0x13
    BZIMAGE = 0x18
    EFI = 0x24
    VERSION = 0xEB


RPI_OUIS = frozenset(
    ("b8:27:eb", "dc:a6:32", "e4:5f:01", "d8:3a:dd", "28:cd:c1", "2c:cf:67", "88:a2:9e")
)
_RPI3_OUI = "b8:27:eb"
_RPI_CLASS = b"PXEClient:Arch:00000:UNDI:002001"
_RPI_NAMES = (b"RPi4", b"RPi5", b"4iPR", b"5iPR")
_CLASS_ARCH = re.compile(rb"(?:PXE|HTTP)Client:Arch:(\d{5})")


@dataclass(frozen=True, slots=True)
class Identity:
    """One machine's firmware as its message shows it.

    ``arch`` is the architecture number of RFC 4578 section 2.1, None if it is not said;
    ``features`` are the codes iPXE lists in option 175; ``serial`` is a Raspberry Pi's serial
    number as 8 hex digits, its TFTP prefix.
    """

    firmware: Firmware
    arch: int | None = None
    features: frozenset[int] = frozenset()
    serial: str | None = None
    rpi3: bool = False

    @property
    def boots(self) -> bool:
        """Whether this is firmware that looks for something to boot."""
        return self.firmware is not Firmware.OTHER


def identify(message: Message) -> Identity:
    """The identity behind ``message``; never raises."""
    vendor = message.options.get(Opt.VENDOR_CLASS, b"")
    uuid = message.options.get(Opt.UUID, b"")
    arch = _arch(message, vendor)
    if message.chaddr[:8] in RPI_OUIS and (vendor.startswith(_RPI_CLASS) or _rpi_uuid(uuid)):
        serial = uuid[-4:][::-1].hex() if len(uuid) == 17 else None
        return Identity(
            Firmware.RPI, arch, serial=serial, rpi3=message.chaddr.startswith(_RPI3_OUI)
        )
    user = message.options.get(Opt.USER_CLASS, b"")
    if user in (b"iPXE", b"\x04iPXE") or Opt.IPXE in message.options:
        items = decapsulate(message.options.get(Opt.IPXE, b""))
        # A feature listed with value 0 is one that is not there.
        features = frozenset(code for code, value in items.items() if any(value))
        return Identity(Firmware.IPXE, arch, features)
    if vendor.startswith(b"HTTPClient"):
        return Identity(Firmware.UEFI_HTTP, arch)
    if vendor.startswith(b"PXEClient"):
        return Identity(Firmware.PXE, arch)
    return Identity(Firmware.OTHER, arch)


def _arch(message: Message, vendor: bytes) -> int | None:
    value = message.options.get(Opt.ARCH, b"")
    if len(value) >= 2:
        return int.from_bytes(value[:2], "big")
    match = _CLASS_ARCH.match(vendor)
    return int(match[1]) if match else None


def _rpi_uuid(uuid: bytes) -> bool:
    """Option 97 of a Pi: a name inside, or the serial four times (Pi 3)."""
    if len(uuid) != 17:
        return False
    body = uuid[1:]
    return any(name in body for name in _RPI_NAMES) or body == body[:4] * 4
