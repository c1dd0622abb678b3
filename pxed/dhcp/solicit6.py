"""Firmware that asks for a network boot by DHCPv6: heard so that it can be told of. Pure.

It is not served: iPXE and the seats' systems need IPv4 here.
"""

from dataclasses import dataclass

from pxed.dhcp.classify import Firmware
from pxed.mac import Mac, mac_text

ALL_AGENTS = bytes.fromhex("333300010002")  # RFC 8415 section 7.1: ff02::1:2 (RFC 2464 section 7)
PORT = 547
_HEADERS = 14 + 40 + 8
_SOLICIT = 1  # RFC 8415 section 7.3
_VENDOR_CLASS = 16  # section 21.16
_ARCH = 61  # RFC 5970 section 3.3
_UDP = 17


@dataclass(frozen=True, slots=True)
class Solicit:
    """A machine that looks for something to boot; ``firmware`` is pxe or uefi-http."""

    mac: Mac
    firmware: Firmware
    arch: int


def solicit(frame: bytes) -> Solicit | None:
    """The SOLICIT in ``frame`` of a machine that boots; None for a system's, and anything else."""
    if len(frame) < _HEADERS + 4 or frame[12:14] != b"\x86\xdd" or frame[20] != _UDP:
        return None
    if frame[6] & 1 or frame[56:58] != PORT.to_bytes(2, "big") or frame[_HEADERS] != _SOLICIT:
        return None
    options = _options(frame[_HEADERS + 4 :])
    arch = options.get(_ARCH, b"")
    if len(arch) < 2:
        return None
    http = b"HTTPClient" in options.get(_VENDOR_CLASS, b"")
    firmware = Firmware.UEFI_HTTP if http else Firmware.PXE
    return Solicit(mac_text(frame[6:12]), firmware, int.from_bytes(arch[:2], "big"))


def _options(data: bytes) -> dict[int, bytes]:
    """Section 21.1: code, length, value; what is truncated is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code = int.from_bytes(data[at : at + 2], "big")
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 + size > len(data):
            break
        found.setdefault(code, data[at + 4 : at + 4 + size])
        at += 4 + size
    return found
