"""What firmware and systems say by DHCP, said to a policy; for the tests of its answers."""

from ipaddress import IPv4Address

from pxed.dhcp.bootplan import BOOT_FILES, BootPlan
from pxed.dhcp.classify import Firmware
from pxed.dhcp.codec import Message, Op, Opt, Type, decode, encode
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Outcome, Policy
from pxed.dhcp.replies import Destination, Mode, Settings
from pxed.events import Kind
from pxed.mac import Mac

SERVER, OTHER_SERVER = IPv4Address("10.77.0.1"), IPv4Address("10.77.0.2")
MAC = Mac("52:54:00:12:34:56")
PI3, PI4 = Mac("b8:27:eb:11:22:33"), Mac("dc:a6:32:11:22:33")
UUID = b"\0" + bytes(range(16))
BIOS = {Opt.VENDOR_CLASS: b"PXEClient:Arch:00000:UNDI:002001", Opt.ARCH: b"\0\0", Opt.UUID: UUID}
UEFI = {Opt.VENDOR_CLASS: b"PXEClient:Arch:00007:UNDI:003016", Opt.ARCH: b"\0\7", Opt.UUID: UUID}
HTTP = {Opt.VENDOR_CLASS: b"HTTPClient:Arch:00016:UNDI:003016", Opt.ARCH: b"\0\x10"}
IPXE = {**BIOS, Opt.USER_CLASS: b"iPXE", Opt.IPXE: b"\x12\1\1\x13\1\1"}
OLD_IPXE = {**BIOS, Opt.USER_CLASS: b"iPXE", Opt.IPXE: b"\x18\1\1"}
PI = {Opt.VENDOR_CLASS: b"PXEClient:Arch:00000:UNDI:002001", Opt.ARCH: b"\0\0"}
SYSTEM = {Opt.VENDOR_CLASS: b"dhcpcd-9.4.1"}


def plan(
    mac: Mac, firmware: Firmware, arch: int | None, features: frozenset[int]
) -> BootPlan | None:
    if mac.startswith("00:00:5e"):
        return None
    return BootPlan(
        BOOT_FILES.get(arch or 0), "aoe:e16.0", "boot.ipxe", "http://10.77.0.1/snponly.efi"
    )


def policy(mode: Mode = Mode.PXE_ONLY, last: str = "10.77.0.59") -> Policy:
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address(last))
    return Policy(Settings(mode, SERVER, 24), leases, plan)


def ask(kind: Type, options: dict[Opt, bytes], *, mac: Mac = MAC, xid: int = 1) -> Message:
    both: dict[int, bytes] = {Opt.TYPE: bytes((kind,))}
    both.update({int(code): value for code, value in options.items()})
    return Message(op=Op.REQUEST, xid=xid, chaddr=mac, options=both)


def discover(
    server: Policy, options: dict[Opt, bytes], *, mac: Mac = MAC, now: float = 0, xid: int = 1
) -> Outcome:
    return server.handle(encode(ask(Type.DISCOVER, options, mac=mac, xid=xid)), now)


def select(
    server: Policy,
    ip: IPv4Address,
    options: dict[Opt, bytes],
    *,
    mac: Mac = MAC,
    now: float = 0,
    chosen: IPv4Address = SERVER,
    xid: int = 1,
) -> Outcome:
    more = {Opt.SERVER_ID: chosen.packed, Opt.REQUESTED_IP: ip.packed}
    return server.handle(encode(ask(Type.REQUEST, {**options, **more}, mac=mac, xid=xid)), now)


def boot(
    server: Policy, options: dict[Opt, bytes], *, mac: Mac = MAC, now: float = 0, xid: int = 1
) -> Message:
    """DISCOVER and REQUEST; the ACK."""
    offer = only(discover(server, options, mac=mac, now=now, xid=xid))
    ack = only(select(server, offer.yiaddr, options, mac=mac, now=now, xid=xid))
    assert ack.type == Type.ACK
    return ack


def only(outcome: Outcome) -> Message:
    assert len(outcome.replies) == 1
    return decode(outcome.replies[0].message)


def to(outcome: Outcome) -> Destination:
    return outcome.replies[0].to


def kinds(outcome: Outcome) -> list[Kind]:
    return [event.kind for event in outcome.events]


def why(outcome: Outcome) -> str:
    assert outcome.replies == ()
    assert kinds(outcome)[-1] is Kind.IGNORED
    return str(outcome.events[-1].detail["why"])
