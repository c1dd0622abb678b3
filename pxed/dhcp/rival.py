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

_WANTED = bytes((Opt.SUBNET_MASK, Opt.ROUTER, Opt.DNS, Opt.TFTP_SERVER, Opt.BOOT_FILE))


@dataclass(frozen=True, slots=True, order=True)
class Rival:
    """Another server on the segment: whether it gives addresses, and whether it boots machines."""

    ip: IPv4Address
    mac: Mac
    leases: bool
    boots: bool

    def __str__(self) -> str:
        what = {
            (True, True): "DHCP server with network boot",
            (True, False): "DHCP server",
            (False, True): "ProxyDHCP boot server",
            (False, False): "DHCP responder",
        }[self.leases, self.boots]
        return f"another {what} answers on this segment: {self.ip} ({self.mac})"


def questions(mac: Mac, xid: int) -> tuple[bytes, bytes]:
    """Two DISCOVERs in the name of ``mac``: as a system, and as UEFI PXE firmware.

    Servers answer by broadcast; an offer that nobody takes expires by itself.
    """
    system = {Opt.TYPE: bytes((Type.DISCOVER,)), Opt.PARAMETERS: _WANTED}
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
    return plain, pxe


def answer(data: bytes, mac: Mac, xid: int, sender: Mac, source: IPv4Address) -> Rival | None:
    """The rival that sent ``data`` in answer to ``questions``; None if it is something else."""
    try:
        message = decode(data)
    except DhcpError:
        return None
    if (message.op, message.type) != (Op.REPLY, Type.OFFER):
        return None
    if message.xid != xid or message.chaddr != mac:
        return None
    boots = bool(message.file or message.options.get(Opt.BOOT_FILE))
    boots = boots or message.options.get(Opt.VENDOR_CLASS, b"").startswith(b"PXEClient")
    named = message.address(Opt.SERVER_ID)
    return Rival(named or source, sender, message.yiaddr != NOWHERE, boots)


def merge(found: list[Rival]) -> tuple[Rival, ...]:
    """One entry for each server, with all that it was seen to do."""
    servers = {(each.ip, each.mac) for each in found}
    return tuple(
        sorted(
            Rival(
                ip,
                mac,
                any(r.leases for r in found if (r.ip, r.mac) == (ip, mac)),
                any(r.boots for r in found if (r.ip, r.mac) == (ip, mac)),
            )
            for ip, mac in servers
        )
    )
