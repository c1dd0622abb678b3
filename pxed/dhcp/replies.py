"""How an answer looks and where it goes: options, header fields, destination. Pure.

What each firmware needs and punishes: docs/netboot.md, section "DHCP replies that work".
"""

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from pxed.dhcp.bootplan import Choice, Step
from pxed.dhcp.classify import Firmware, Identity
from pxed.dhcp.codec import (
    BROADCAST_FLAG,
    CLIENT_PORT,
    NOWHERE,
    SERVER_PORT,
    DhcpError,
    Message,
    Op,
    Opt,
    Type,
    decapsulate,
    encapsulate,
    encode,
)
from pxed.errors import UsageError
from pxed.mac import Mac

EVERYBODY = IPv4Address("255.255.255.255")
_BIOS_ARCHES = (None, 0)

# PXE 2.1 section 2.4: discovery control 8, "use the file name in this very offer".
_USE_THIS_FILE = encapsulate({6: b"\x08"})
# iPXE: priority 1 beats every offer that says nothing; 0xb0 no-pxedhcp: do not wait for a proxy.
_IPXE = encapsulate({0x01: b"\x01", 0xB0: b"\x01"}, end=False)
_RPI_TEXT = b"Raspberry Pi Boot"


# What a reply can do without, in this order, after all but three name servers.
_DISPENSABLE = (Opt.BROADCAST, Opt.T1, Opt.T2, Opt.MTU, Opt.DNS)


class Mode(StrEnum):
    """``[dhcp] mode``: who gets an answer, and whether it carries an address."""

    PXE_ONLY = "pxe-only"
    ALL = "all"
    PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the policy needs to know of the segment. UsageError if it makes no sense.

    ``lease`` in seconds. ``mtu`` goes to clients that ask for option 26, None: it is not sent.
    ``rpi3_delay``: seconds before a Pi 3 is answered, whose ROM can lock up on a quick answer.
    """

    mode: Mode
    server: IPv4Address
    prefixlen: int
    router: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    lease: int = 600
    mtu: int | None = None
    name: str = ""
    rpi3_delay: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.prefixlen <= 30:
            raise UsageError(
                f"a /{self.prefixlen} network has no room for clients: use /30 or wider"
            )
        if not 60 <= self.lease < 1 << 32:
            raise UsageError(f"[dhcp] lease is {self.lease} s: use 60 s or more")

    @property
    def network(self) -> IPv4Network:
        """The server's own subnet."""
        return _network(self.server, self.prefixlen)


@lru_cache(maxsize=8)
def _network(address: IPv4Address, prefixlen: int) -> IPv4Network:
    """Asked for with every message, and slow to make."""
    return IPv4Network((address, prefixlen), strict=False)


class Kind(StrEnum):
    """How a reply reaches its client."""

    RELAY = "relay"  # UDP to the relay agent
    UNICAST = "unicast"  # UDP to an address that the client has
    BROADCAST = "broadcast"  # UDP to 255.255.255.255
    LINK = "link"  # a frame to the MAC, for an address that nobody answers ARP for yet


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a reply goes: UDP to ``ip``:``port``; ``mac`` is the Ethernet address for LINK."""

    kind: Kind
    ip: IPv4Address
    port: int
    mac: Mac


@dataclass(frozen=True, slots=True)
class Reply:
    """A datagram to send ``delay`` seconds from now."""

    message: bytes
    to: Destination
    delay: float = 0.0


def destination(request: Message, reply: Message) -> Destination:
    """RFC 2131 section 4.1: relay, known address, broadcast, or the frame to chaddr."""
    mac = request.chaddr
    if request.giaddr != NOWHERE:
        return Destination(Kind.RELAY, request.giaddr, SERVER_PORT, mac)
    everybody = Destination(Kind.BROADCAST, EVERYBODY, CLIENT_PORT, mac)
    if reply.type == Type.NAK or (reply.yiaddr == NOWHERE and request.ciaddr == NOWHERE):
        return everybody
    if request.ciaddr != NOWHERE and reply.type == Type.ACK:
        return Destination(Kind.UNICAST, request.ciaddr, CLIENT_PORT, mac)
    if request.broadcast:
        return everybody
    if reply.yiaddr == NOWHERE:
        return everybody
    return Destination(Kind.LINK, reply.yiaddr, CLIENT_PORT, mac)


def nak(request: Message, server: IPv4Address, why: str) -> Reply:
    """A DHCPNAK (RFC 2131 table 3), by broadcast: the client's address is wrong."""
    message = _blank(request, Type.NAK, server)
    message.flags |= BROADCAST_FLAG  # section 4.3.2: a relay must broadcast it too
    message.options[Opt.TEXT] = why.encode("ascii", "replace")[:255]
    _echo_last(request, message)
    return Reply(_fitted(message, request.max_size), destination(request, message))


def lease_reply(
    request: Message,
    kind: Type,
    settings: Settings,
    who: Identity,
    choice: Choice | None,
    yiaddr: IPv4Address | None,
) -> Reply:
    """An OFFER or ACK with an address (none in answer to INFORM), and with what to boot."""
    message = _blank(request, kind, settings.server)
    options = message.options
    if yiaddr is not None:
        message.yiaddr = yiaddr
        options[Opt.LEASE_TIME] = settings.lease.to_bytes(4, "big")
        if request.asks(Opt.T1):
            options[Opt.T1] = (settings.lease // 2).to_bytes(4, "big")
        if request.asks(Opt.T2):
            options[Opt.T2] = (settings.lease * 7 // 8).to_bytes(4, "big")
    if kind is Type.ACK:
        message.ciaddr = request.ciaddr
    options[Opt.SUBNET_MASK] = settings.network.netmask.packed
    if settings.router is not None:
        options[Opt.ROUTER] = settings.router.packed
    if settings.dns:
        options[Opt.DNS] = b"".join(ip.packed for ip in settings.dns)
    if request.asks(Opt.BROADCAST):
        options[Opt.BROADCAST] = settings.network.broadcast_address.packed
    if settings.mtu is not None and request.asks(Opt.MTU):
        options[Opt.MTU] = settings.mtu.to_bytes(2, "big")
    if choice is not None:
        _boot(request, message, settings, who, choice)
    if not who.boots and Opt.CLIENT_ID in request.options:  # RFC 6842 section 3
        options[Opt.CLIENT_ID] = request.options[Opt.CLIENT_ID]
    _echo_last(request, message)
    delay = settings.rpi3_delay if who.rpi3 else 0.0
    return Reply(_fitted(message, request.max_size), destination(request, message), delay)


def proxy_offer(request: Message, settings: Settings, who: Identity, choice: Choice) -> Reply:
    """A ProxyDHCP offer: no address, only what to boot (PXE 2.1 section 2.2.3)."""
    message = _blank(request, Type.OFFER, settings.server)
    _boot(request, message, settings, who, choice, proxy=True)
    _echo_last(request, message)
    delay = settings.rpi3_delay if who.rpi3 else 0.0
    return Reply(_fitted(message, request.max_size), destination(request, message), delay)


def boot_service_ack(
    request: Message,
    settings: Settings,
    who: Identity,
    choice: Choice,
    source: tuple[IPv4Address, int],
) -> Reply:
    """The answer on port 4011, to the very address and port that asked."""
    message = _blank(request, Type.ACK, settings.server)
    message.ciaddr = request.ciaddr
    _boot(request, message, settings, who, choice, proxy=True)
    item = decapsulate(request.options.get(Opt.VENDOR, b"")).get(71)
    if item is not None and who.firmware is Firmware.PXE:  # PXE_BOOT_ITEM: must come back
        message.options[Opt.VENDOR] = encapsulate({71: item})
    _echo_last(request, message)
    to = Destination(Kind.UNICAST, source[0], source[1], request.chaddr)
    return Reply(_fitted(message, request.max_size), to)


def _fitted(message: Message, limit: int) -> bytes:
    """The bytes of ``message``; what firmware can do without goes first where room is short."""
    try:
        return encode(message, limit)
    except DhcpError:
        options = message.options
        if Opt.DNS in options:
            options[Opt.DNS] = options[Opt.DNS][:12]
        for code in _DISPENSABLE:
            with contextlib.suppress(DhcpError):
                return encode(message, limit)
            options.pop(code, None)
        return encode(message, limit)


def _blank(request: Message, kind: Type, server: IPv4Address) -> Message:
    return Message(
        op=Op.REPLY,
        xid=request.xid,
        chaddr=request.chaddr,
        flags=request.flags,
        giaddr=request.giaddr,
        options={Opt.TYPE: bytes((kind,)), Opt.SERVER_ID: server.packed},
    )


def _boot(
    request: Message,
    message: Message,
    settings: Settings,
    who: Identity,
    choice: Choice,
    *,
    proxy: bool = False,
) -> None:
    """Add what this firmware needs to boot ``choice`` to ``message``."""
    options = message.options
    dotted = str(settings.server).encode()
    file = choice.file.encode()
    message.siaddr = settings.server
    message.sname = (settings.name.encode() or dotted)[:63]
    if len(file) < 128:
        message.file = file
    if file and (len(file) >= 128 or request.asks(Opt.BOOT_FILE)):
        options[Opt.BOOT_FILE] = file
    if request.asks(Opt.TFTP_SERVER):
        options[Opt.TFTP_SERVER] = dotted
    if choice.root_path:
        options[Opt.ROOT_PATH] = choice.root_path.encode()
    match who.firmware:
        case Firmware.IPXE:
            options[Opt.IPXE] = _IPXE
            if proxy:  # without it iPXE takes no offer for a proxy's
                options[Opt.VENDOR_CLASS] = b"PXEClient"
        case Firmware.UEFI_HTTP:
            options[Opt.VENDOR_CLASS] = b"HTTPClient"
        case Firmware.RPI:
            options[Opt.VENDOR_CLASS] = b"PXEClient"
            options[Opt.VENDOR] = _rpi_vendor(who)
            options[Opt.TFTP_SERVER] = dotted
        case Firmware.PXE:
            options[Opt.VENDOR_CLASS] = b"PXEClient"
            if not proxy or who.arch in _BIOS_ARCHES:  # old EDK2 drops it from a proxy
                options[Opt.VENDOR] = _USE_THIS_FILE
    if Opt.UUID in request.options and choice.step is not Step.REFUSE:
        options[Opt.UUID] = request.options[Opt.UUID]


def _rpi_vendor(who: Identity) -> bytes:
    """Option 43 of a Pi: a menu with one item whose text the ROM looks for."""
    text = _RPI_TEXT + (b"   " if who.rpi3 else b"")
    menu = b"\x00\x00" + bytes((len(text),)) + text
    return encapsulate({6: b"\x03", 10: b"\x00PXE", 9: menu})


def _echo_last(request: Message, message: Message) -> None:
    """RFC 3046 section 2.2: the relay's option comes back as it was, as the last one."""
    if Opt.RELAY in request.options:
        message.options[Opt.RELAY] = request.options[Opt.RELAY]
