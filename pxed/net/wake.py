"""Wake-on-LAN: the magic packet, six bytes of 0xFF and the address sixteen times, in one frame."""

from collections.abc import Iterable

from pxed.errors import HostError
from pxed.mac import Mac, mac_bytes
from pxed.net.link import Link
from pxed.net.packet import open_raw

ETH_WAKE = 0x0842


def magic_frame(source: Mac, mac: Mac) -> bytes:
    """The broadcast frame that wakes ``mac`` (AMD, Magic Packet Technology, 1995)."""
    head = b"\xff" * 6 + mac_bytes(source) + ETH_WAKE.to_bytes(2, "big")
    return head + b"\xff" * 6 + mac_bytes(mac) * 16


def wake(link: Link, macs: Iterable[Mac]) -> None:
    """Send each a magic packet on ``link``; HostError if the link does not take it."""
    raw = open_raw(link)
    try:
        for mac in macs:
            raw.send(magic_frame(link.mac, mac))
    except OSError as error:
        raise HostError(f"{link.name}: cannot send: {error.strerror}") from error
    finally:
        raw.close()
