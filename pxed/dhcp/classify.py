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
_ARM = frozenset((10, 11, 18, 19, 21, 22, 23, 24))
_RPI_ARCH = 41  # "arm rpiboot"
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


def class_of(firmware: str, arch: int | None) -> str:
    """The class of images that a machine boots: by its processor's family.

    UEFI and U-Boot on ARM boot what a Raspberry Pi does; a Pi's own loader says that it is a PC.
    """
    return "rpi" if firmware == Firmware.RPI or arch in _ARM else "x86"


def identify(message: Message) -> Identity:
    """The identity behind ``message``; never raises."""
    vendor = message.options.get(Opt.VENDOR_CLASS, b"")
    uuid = message.options.get(Opt.UUID, b"")
    arch = _arch(message, vendor)
    if _is_rpi(message, vendor, uuid, arch):
        serial = uuid[-4:][::-1].hex() if len(uuid) == 17 else None
        return Identity(
            Firmware.RPI, arch, serial=serial, rpi3=message.chaddr.startswith(_RPI3_OUI)
        )
    user = message.options.get(Opt.USER_CLASS, b"")
    if user.startswith(b"iPXE") or b"\x04iPXE" in user or Opt.IPXE in message.options:
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


def _is_rpi(message: Message, vendor: bytes, uuid: bytes, arch: int | None) -> bool:
    """A Pi's loader: by its maker's address and what it says of itself, or by its name alone.

    Its address can be set to any other. Its UEFI or iPXE says another architecture, and is no Pi.
    """
    if not vendor.startswith(b"PXEClient") or arch not in (None, 0, _RPI_ARCH):
        return False
    body = uuid[1:] if len(uuid) == 17 else b""
    if arch == _RPI_ARCH or any(name in body for name in _RPI_NAMES):
        return True
    fourfold = bool(body) and body == body[:4] * 4  # Pi 3: the serial; a PC may have 16 zeros
    return message.chaddr[:8] in RPI_OUIS and (vendor.startswith(_RPI_CLASS) or fourfold)


_ARCHES = {
    0: "BIOS PC", 1: "NEC PC-98", 2: "Itanium UEFI", 3: "DEC Alpha", 4: "ARC x86",
    5: "Intel Lean Client", 6: "32-bit x86 UEFI", 7: "x64 UEFI", 8: "Xscale EFI", 9: "x64 UEFI",
    10: "32-bit ARM UEFI", 11: "64-bit ARM UEFI", 12: "PowerPC Open Firmware", 13: "PowerPC ePAPR",
    14: "POWER OPAL", 15: "32-bit x86 UEFI by HTTP", 16: "x64 UEFI by HTTP",
    17: "EFI byte code by HTTP", 18: "32-bit ARM UEFI by HTTP", 19: "64-bit ARM UEFI by HTTP",
    20: "BIOS PC by HTTP", 21: "32-bit ARM U-Boot", 22: "64-bit ARM U-Boot",
    23: "32-bit ARM U-Boot by HTTP", 24: "64-bit ARM U-Boot by HTTP", 25: "32-bit RISC-V UEFI",
    26: "32-bit RISC-V UEFI by HTTP", 27: "64-bit RISC-V UEFI", 28: "64-bit RISC-V UEFI by HTTP",
    29: "128-bit RISC-V UEFI", 30: "128-bit RISC-V UEFI by HTTP", 31: "s390 basic",
    32: "s390 extended", 33: "32-bit MIPS UEFI", 34: "64-bit MIPS UEFI", 35: "32-bit Sunway UEFI",
    36: "64-bit Sunway UEFI", 37: "32-bit LoongArch UEFI", 38: "32-bit LoongArch UEFI by HTTP",
    39: "64-bit LoongArch UEFI", 40: "64-bit LoongArch UEFI by HTTP", 41: "Raspberry Pi",
}  # fmt: skip


def arch_name(arch: int | None) -> str:
    """An architecture number for people: IANA's registry for RFC 5970, "Processor Architecture"."""
    if arch is None:
        return "an unnamed architecture"
    name = _ARCHES.get(arch)
    return f"architecture {arch}" + (f" ({name})" if name else "")
