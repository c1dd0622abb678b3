"""What was seen of a boot, in words: one line for each event that tells something. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pxed.dhcp.classify import arch_name
from pxed.events import Event, Kind

_WHO = {"pxe": "PXE", "ipxe": "iPXE", "uefi-http": "UEFI HTTP boot", "rpi": "Raspberry Pi"}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was seen, and when; ``count``: so many times in a row."""

    time: float
    text: str
    count: int = 1


def tell(trace: Sequence[Event]) -> list[Line]:
    """The story of a boot, oldest first; what repeats is one line with its count."""
    lines: list[Line] = []
    for event in trace:
        text = words(event)
        if not text:
            continue
        if lines and lines[-1].text == text:
            lines[-1] = Line(lines[-1].time, text, lines[-1].count + 1)
        else:
            lines.append(Line(event.time, text))
    return lines


def who(firmware: object, arch: object) -> str:
    """The firmware of a machine, for people; empty if nothing is known of it."""
    name = _WHO.get(str(firmware), "")
    return f"{name}, {arch_name(arch)}" if name and isinstance(arch, int) else name


def words(event: Event) -> str:
    """The event in words; empty for those that say nothing to a person."""
    d = event.detail
    file = d.get("file")
    match event.kind:
        case Kind.DISCOVER:
            return f"asks for an address and what to boot ({who(d.get('firmware'), d.get('arch'))})"
        case Kind.SOLICIT6:
            return "asks for a network boot by IPv6; not served here"
        case Kind.OFFER:
            return f"is offered {_what(d)}"
        case Kind.REQUEST if d.get("server"):
            return f"takes {d.get('ip')} from the DHCP server {d.get('server')}"
        case Kind.ACK:
            return f"took {_what(d)}"
        case Kind.NAK:
            return f"was refused {d.get('ip')}: {d.get('why')}"
        case Kind.IGNORED:
            return f"gets no answer: {d.get('why')}"
        case Kind.DECLINE:
            return f"{d.get('ip')} is in use by another machine"
        case Kind.POOL_FULL:
            if held := int(str(d.get("unclaimed") or 0)) + int(str(d.get("idle") or 0)):
                return f"gets no address yet: {held} of {d.get('range')} wait for machines to go on"
            return f"gets no address: all of {d.get('range')} are taken"
        case Kind.TFTP_READ:
            return f"begins to read {file} by TFTP ({d.get('size')} bytes)"
        case Kind.HTTP_READ:
            return f"begins to read {file} by HTTP ({d.get('size')} bytes)"
        case Kind.TFTP_PROBE:
            return f"asks for the size of {file} (normal before it is read)"
        case Kind.TFTP_DONE | Kind.HTTP_DONE:
            return f"has read {file} ({d.get('bytes')} bytes)"
        case Kind.TFTP_MISSING | Kind.HTTP_MISSING:
            return f"asks for {file}, which is not here"
        case Kind.TFTP_FAILED | Kind.HTTP_FAILED:
            return f"reading {file} ended: {d.get('why')}"
        case Kind.AOE_FOUND:
            return f"found its disk e{d.get('shelf')}.{d.get('slot')}"
        case Kind.AOE_READ:
            return f"reads from e{d.get('shelf')}.{d.get('slot')}"
        case Kind.MIDLAYER_FAILED:
            return f"its devices cannot be prepared: {d.get('why')}"
    return ""


def _what(d: Mapping[str, object]) -> str:
    parts = [str(d.get(key)) for key in ("ip", "boot_file", "root_path") if d.get(key)]
    return ", ".join(parts) or "what to boot"
