"""Who else answers DHCP here: the questions that find out, and what the answers say (M15). Pure."""

from dataclasses import dataclass
from ipaddress import IPv4Address

from pxed.dhcp.codec import (
    BROADCAST_FLAG,
    NOWHERE,
    DhcpError,
    Message,
    Op,
    Opt,
    Type,
    decode,
    encode,
)
from pxed.mac import Mac

LOOKING = b"pxed-is-looking"
"""Host name in our questions: another pxed answers, and takes nobody for a machine that boots."""

_WANTED = bytes((Opt.SUBNET_MASK, Opt.ROUTER, Opt.DNS, Opt.TFTP_SERVER, Opt.BOOT_FILE))


@dataclass(frozen=True, slots=True, order=True)
class Rival:
    """Another server on the segment: whether it gives addresses, and whether it boots machines.

    ``address`` and ``file`` are what it offered, as far as it said. ``asks_4011``: it says
    PXEClient without option 43, so UEFI firmware goes on to ask its port 4011, and fails with
    PXE-E16 if nobody answers there (docs/netboot.md). ``siaddr``: where its boot file is to be had,
    if that is not the server itself.
    """

    ip: IPv4Address
    mac: Mac
    leases: bool
    boots: bool
    address: str = ""
    file: str = ""
    asks_4011: bool = False
    siaddr: str = ""

    @property
    def boot(self) -> str:
        """What it has machines boot, in words."""
        file = f"boot file {self.file}" if self.file else "network boot without a file name"
        return f"{file} from {self.siaddr}" if self.siaddr else file

    @property
    def offer(self) -> str:
        """What it offered, in words."""
        words = []
        if self.leases:
            words.append(f"address {self.address}" if self.address else "addresses")
        if self.boots:
            words.append(self.boot if self.file else "network boot")
        return " and ".join(words) or "no address and no boot file"

    def __str__(self) -> str:
        what = {
            (True, True): "DHCP server with network boot",
            (True, False): "DHCP server",
            (False, True): "ProxyDHCP boot server",
            (False, False): "DHCP responder",
        }[self.leases, self.boots]
        return f"another {what} answers on this segment: {self.ip} ({self.mac})"


def questions(mac: Mac, xid: int, own: IPv4Address | None = None) -> tuple[bytes, ...]:
    """DISCOVERs in the name of ``mac``: as a system, and as UEFI PXE firmware; and an INFORM.

    Servers answer by broadcast; an offer that nobody takes expires by itself. Some first ping for
    three seconds the address that they are going to offer (dnsmasq, dhcpd): those answer the INFORM
    from our address ``own`` at once.
    """
    system = {
        Opt.TYPE: bytes((Type.DISCOVER,)),
        Opt.HOST_NAME: LOOKING,
        Opt.PARAMETERS: _WANTED,
    }
    firmware = {
        **system,
        Opt.VENDOR_CLASS: b"PXEClient:Arch:00007:UNDI:003016",
        Opt.ARCH: b"\x00\x07",
        Opt.NDI: b"\x01\x03\x10",
        Opt.UUID: bytes(17),
    }
    plain, pxe = (
        encode(
            Message(
                op=Op.REQUEST,
                xid=xid,
                chaddr=mac,
                flags=BROADCAST_FLAG,
                options={int(code): value for code, value in options.items()},
            )
        )
        for options in (system, firmware)
    )
    if own is None:
        return plain, pxe
    inform = {Opt.TYPE: bytes((Type.INFORM,)), Opt.PARAMETERS: _WANTED}
    message = Message(
        op=Op.REQUEST,
        xid=xid,
        chaddr=mac,
        ciaddr=own,
        options={int(code): value for code, value in inform.items()},
    )
    return plain, pxe, encode(message)


def source_of(question: bytes) -> IPv4Address:
    """The address that a question is sent from: ciaddr (RFC 2131 section 4.1)."""
    return decode(question).ciaddr


def answer(data: bytes, mac: Mac, xid: int, sender: Mac, source: IPv4Address) -> Rival | None:
    """The rival that sent ``data`` in answer to ``questions``; None if it is something else."""
    try:
        message = decode(data)
    except DhcpError:
        return None
    if message.op != Op.REPLY or message.type not in (Type.OFFER, Type.ACK):
        return None
    if message.xid != xid or message.chaddr != mac:
        return None
    return seen(message, sender, source)


def seen(message: Message, sender: Mac, source: IPv4Address) -> Rival:
    """What an OFFER or ACK of another server says about it; an ACK to an INFORM is a DHCP server's.

    ``sender`` and ``source`` are where it came from; option 54 counts for more.
    """
    file = (message.file or message.options.get(Opt.BOOT_FILE, b"")).split(b"\0")[0]
    pxe = message.options.get(Opt.VENDOR_CLASS, b"").startswith(b"PXEClient")
    ip = message.address(Opt.SERVER_ID) or source
    return Rival(
        ip,
        sender,
        message.yiaddr != NOWHERE or message.type == Type.ACK,
        bool(file) or pxe,
        str(message.yiaddr) if message.yiaddr != NOWHERE else "",
        "".join(c if c.isprintable() else "?" for c in file.decode("ascii", "replace"))[:128],
        pxe and Opt.VENDOR not in message.options,
        str(message.siaddr) if file and message.siaddr not in (NOWHERE, ip) else "",
    )


def merge(found: list[Rival]) -> tuple[Rival, ...]:
    """One entry for each server, with all that it was seen to do."""
    servers: dict[tuple[IPv4Address, Mac], Rival] = {}
    for each in found:
        have = servers.setdefault((each.ip, each.mac), each)
        servers[each.ip, each.mac] = Rival(
            each.ip,
            each.mac,
            have.leases or each.leases,
            have.boots or each.boots,
            have.address or each.address,
            have.file or each.file,
            have.asks_4011 or each.asks_4011,
            have.siaddr or each.siaddr,
        )
    return tuple(sorted(servers.values()))
