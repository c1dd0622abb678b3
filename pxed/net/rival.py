"""Looks for other DHCP and PXE servers on a segment, without taking part in it (M15)."""

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from ipaddress import IPv4Address

from pxed.dhcp.codec import CLIENT_PORT, SERVER_PORT
from pxed.dhcp.replies import EVERYBODY
from pxed.dhcp.rival import Rival, answer, merge, questions, source_of
from pxed.errors import HostError
from pxed.mac import Mac, mac_bytes, mac_text
from pxed.net.link import Link
from pxed.net.packet import ETH_IPV4, Instruction, open_raw, udp_frame
from pxed.net.udp import bind_udp

TFTP_PORT = 69
_LATE = 256  # answers read at the end, which came while the loop was busy
TFTP_QUESTION = b"\0\1pxed-is-looking\0octet\0"
"""A read request for a file that nobody has: every answer to it is one of a TFTP server."""


def _to_port(port: int) -> tuple[Instruction, ...]:
    """IPv4, UDP, first fragment, this destination port."""
    return (
        (0x28, 0, 0, 12),  # ldh [12]
        (0x15, 0, 8, ETH_IPV4),
        (0x30, 0, 0, 23),  # ldb [23]
        (0x15, 0, 6, socket.IPPROTO_UDP),
        (0x28, 0, 0, 20),  # ldh [20]
        (0x45, 4, 0, 0x1FFF),  # jset: a later fragment
        (0xB1, 0, 0, 14),  # ldx 4*([14]&0xf)
        (0x48, 0, 0, 16),  # ldh [x+16]
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )


async def find_rivals(
    link: Link, seconds: float = 2.0, *, enough: Callable[[Rival], bool] = lambda rival: False
) -> tuple[Rival, ...]:
    """Servers that answer on ``link`` within ``seconds``, asked twice; sooner if ``enough`` is met.

    Our own server does not hear the question, so this can be asked at any time. HostError without
    the privilege or the link.
    """
    loop = asyncio.get_running_loop()
    raw = open_replies(link)
    xid = random.getrandbits(32)
    found: list[Rival] = []
    done = asyncio.Event()
    ip = link.addresses[0].ip if link.addresses else None

    def readable() -> bool:
        try:
            frame = raw.recv(4096)
        except OSError:
            return False
        rival = _rival(frame, link, xid)
        if rival is not None:
            found.append(rival)
            if enough(rival):
                done.set()
        return True

    loop.add_reader(raw.fileno(), readable)
    try:
        asked = questions(link.mac, xid, ip)
        # The INFORM first and alone: a server that pings before it offers hears nothing meanwhile.
        for some, share in ((asked[2:], 0.2), (asked, 0.4), (asked[:2], 0.4)):
            for question in some:
                _ask(raw, link, question)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), seconds * share)
                break
        read_rest(readable)
    finally:
        loop.remove_reader(raw.fileno())
        raw.close()
    return merge(found)


def read_rest(readable: Callable[[], bool]) -> None:
    """Take what has arrived and was not read, as the loop was busy; ``readable``: there was one."""
    for _ in range(_LATE):
        if not readable():
            return


def _ask(raw: socket.socket, link: Link, question: bytes) -> None:
    own = mac_bytes(link.mac)
    source, target = (source_of(question), CLIENT_PORT), (EVERYBODY, SERVER_PORT)
    try:
        raw.send(udp_frame(own, b"\xff" * 6, source, target, question))
    except OSError as error:
        raise HostError(f"cannot look for rivals on {link.name}: {error.strerror}") from None


def open_replies(link: Link) -> socket.socket:
    """A raw socket that receives what DHCP servers answer on ``link``."""
    return open_raw(link, ETH_IPV4, _to_port(CLIENT_PORT))


def payload(frame: bytes) -> tuple[Mac, IPv4Address, bytes] | None:
    """Sender, source address and UDP payload of a frame that passed the filter."""
    if len(frame) <= 34:
        return None
    at = 14 + (frame[14] & 0xF) * 4
    return mac_text(frame[6:12]), IPv4Address(frame[26:30]), frame[at + 8 :]


def _rival(frame: bytes, link: Link, xid: int) -> Rival | None:
    said = payload(frame)
    if said is None or said[0] == link.mac:  # our own server's answer to somebody
        return None
    sender, source, data = said
    return answer(data, link.mac, xid, sender, source)


async def find_tftp(link: Link, seconds: float = 1.0) -> dict[Mac, IPv4Address]:
    """TFTP servers that answer on ``link`` within ``seconds``; none where we have no address.

    By broadcast, in a frame of our own, which our own server does not hear. Some servers do not
    answer broadcasts (RFC 1123 section 4.2.3.5 forbids it), and stay unseen. HostError.
    """
    found: dict[Mac, IPv4Address] = {}
    if not link.addresses:
        return found
    own, loop = link.addresses[0].ip, asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        # Holds the port, so that the kernel does not answer for it; what comes is read below.
        holder = stack.enter_context(bind_udp(link, 0, ""))
        port = holder.getsockname()[1]
        raw = stack.enter_context(open_raw(link, ETH_IPV4, _to_port(port)))

        def readable() -> bool:
            try:
                said = payload(raw.recv(2048))
            except OSError:
                return False
            if (
                said is not None
                and said[0] != link.mac
                and said[2][:1] == b"\0"
                and len(found) < 64
            ):
                found[said[0]] = said[1]
            return True

        loop.add_reader(raw.fileno(), readable)
        stack.callback(loop.remove_reader, raw.fileno())
        question = udp_frame(
            mac_bytes(link.mac), b"\xff" * 6, (own, port), (EVERYBODY, TFTP_PORT), TFTP_QUESTION
        )
        try:
            raw.send(question)
        except OSError as error:
            raise HostError(f"cannot look for rivals on {link.name}: {error.strerror}") from None
        await asyncio.sleep(seconds)
        read_rest(readable)
    return found
