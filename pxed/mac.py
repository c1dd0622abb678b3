"""MAC addresses: six bytes on the wire, lower-case text with colons everywhere else."""

import re
from typing import NewType

Mac = NewType("Mac", str)
"""Canonical text, such as ``52:54:00:00:00:01``."""

_FORM = re.compile(r"[0-9a-f]{2}([:-]?[0-9a-f]{2}){5}", re.ASCII)


def mac_text(raw: bytes) -> Mac:
    """Canonical text of the first six bytes of ``raw``; ValueError if there are fewer."""
    if len(raw) < 6:
        raise ValueError(f"a MAC address has 6 bytes, not {len(raw)}")
    return Mac(raw[:6].hex(":"))


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address in canonical text."""
    return bytes.fromhex(mac.replace(":", ""))


def parse_mac(text: str) -> Mac:
    """Canonical form of what a person typed (colons, dashes or neither); ValueError if it is none.

    A group address (multicast or broadcast) is refused: it names no single machine.
    """
    plain = text.strip().lower()
    if not _FORM.fullmatch(plain):
        raise ValueError(f"{text!r} is not a MAC address such as 52:54:00:00:00:01")
    raw = bytes.fromhex(plain.replace(":", "").replace("-", ""))
    if raw[0] & 1:
        raise ValueError(f"{text!r} is a group address, not a machine's")
    return mac_text(raw)
