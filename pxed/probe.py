"""A client that is not there: goes through DHCP, TFTP and AoE against the server's own parts.

The server cannot hear frames that its own machine sends on the interface it serves, so the messages
go straight to what would answer them on the wire: real DHCP messages to the policy, real AoE frames
to the target. What this does not test is the card, the cable and the switch. Nothing is recorded.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from aoe_fast import Target
from aoe_fast.frames import (
    Ata,
    Command,
    InitiatorError,
    Reply,
    ata_body,
    build,
    config_body,
    parse,
    parse_ata,
    parse_config,
    parse_identity,
    transfer_body,
)
from pxed.dhcp.codec import DhcpError, Message, Op, Opt, Type, decode, encode
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode
from pxed.errors import PxedError
from pxed.mac import Mac, mac_bytes
from pxed.tftp.session import File

DOCTOR = Mac("02:70:78:65:64:01")
"""The simulated machine's address: locally administered, so it is nobody's."""

FIRMWARE = {
    "bios": (0, b"PXEClient:Arch:00000:UNDI:002001"),
    "uefi": (7, b"PXEClient:Arch:00007:UNDI:003016"),
    "ipxe": (0, b"PXEClient:Arch:00000:UNDI:002001"),
    "http": (16, b"HTTPClient:Arch:00016:UNDI:003001"),
    "rpi": (0, b"PXEClient:Arch:00000:UNDI:002001"),
}
"""Architecture (option 93) and vendor class (option 60) of each."""
_PI = b"RPi4\x11\x31\xd0\x00" + bytes(4) + bytes.fromhex("01647870")  # a 4B: option 97's body
_PI_SERIAL = "70786401"
_PI_FILES = ("start4.elf", "config.txt", "cmdline.txt")
_SERVER = bytes.fromhex("027078656400")
_AOE_ROOT = re.compile(r"aoe:e(\d+)\.(\d+)")
_MAX_HOPS = 3  # firmware, our iPXE, its script
_PARAMETERS = bytes((1, 3, 6, 13, 17, 43, 60, 66, 67, 128, 175))


@dataclass(frozen=True, slots=True)
class Seen:
    """One step of the simulated boot: what it was and how it went."""

    step: str
    good: bool
    text: str


class Failed(Exception):
    """A step that ends the simulated boot."""


class Probe:
    """Boots a machine that is not there; ``run`` never raises."""

    def __init__(
        self, policy: Policy, open_file: Callable[[str], File], target: Target,
        has_url: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._policy = policy
        self._has_url = has_url
        self._open = open_file
        self._target = target
        self._steps: list[Seen] = []
        self._xid = 0x70786564
        self._uuid = bytes(17)

    def run(self, firmware: str) -> list[Seen]:
        """What a client with a firmware of ``FIRMWARE`` comes to; a bad step is the last."""
        self._steps = []
        arch, vendor = FIRMWARE[firmware]
        self._uuid = b"\0" + (_PI if firmware == "rpi" else bytes(16))
        try:
            if firmware == "rpi":
                self._dhcp(arch, vendor, ipxe=False)
                for name in _PI_FILES:
                    self._tftp(f"{_PI_SERIAL}/{name}")
                return self._steps
            is_ipxe = firmware == "ipxe"
            for _ in range(_MAX_HOPS):
                answer = self._dhcp(arch, vendor, ipxe=is_ipxe)
                file = answer.file.decode("ascii", "replace")
                root = answer.options.get(Opt.ROOT_PATH, b"").decode("ascii", "replace")
                if root and is_ipxe:
                    self._aoe(root)
                    return self._steps
                if not file:
                    raise Failed("the answer names neither a boot file nor a root path")
                if file.startswith("http"):
                    self._http(file)
                    return self._steps
                content = self._tftp(file)
                if file.endswith(".ipxe"):
                    self._aoe(content.decode("ascii", "replace"))
                    return self._steps
                is_ipxe = True
            raise Failed("it is told to load iPXE again and again")
        except Failed as failure:
            self._steps.append(Seen("", False, str(failure)))
        except (PxedError, InitiatorError) as error:
            self._steps.append(Seen("", False, f"{error}"))
        return self._steps

    def _note(self, step: str, text: str) -> None:
        self._steps.append(Seen(step, True, text))

    # DHCP

    def _dhcp(self, arch: int, vendor: bytes, *, ipxe: bool) -> Message:
        self._xid += 1
        offer = self._say(self._message(Type.DISCOVER, arch, vendor, ipxe), "DISCOVER")
        if self._policy.settings.mode is Mode.PROXY:
            self._note("DHCP", f"offer without an address from {offer.siaddr}")
            return offer
        asked = self._message(Type.REQUEST, arch, vendor, ipxe)
        asked.options[Opt.REQUESTED_IP] = offer.yiaddr.packed
        asked.options[Opt.SERVER_ID] = offer.options[Opt.SERVER_ID]
        answer = self._say(asked, "REQUEST")
        if answer.type != Type.ACK:
            raise Failed(f"the server refuses {offer.yiaddr}, which it had offered")
        self._note("DHCP", f"{answer.yiaddr} from {answer.siaddr}")
        self._give_back(answer.yiaddr, offer.options[Opt.SERVER_ID])
        return answer

    def _message(self, kind: Type, arch: int, vendor: bytes, ipxe: bool) -> Message:
        options = {
            Opt.TYPE: bytes((kind,)),
            Opt.PARAMETERS: _PARAMETERS,
            Opt.VENDOR_CLASS: vendor,
            Opt.ARCH: arch.to_bytes(2, "big"),
            Opt.NDI: b"\x01\x03\x10",
            Opt.UUID: self._uuid,
        }
        if ipxe:
            options[Opt.USER_CLASS] = b"iPXE"
            options[Opt.IPXE] = b"\x12\x01\x01\x13\x01\x01"  # it can do AoE and HTTP
        return Message(
            op=Op.REQUEST, xid=self._xid, chaddr=DOCTOR,
            options={int(code): value for code, value in options.items()},
        )  # fmt: skip

    def _say(self, message: Message, what: str) -> Message:
        try:
            outcome = self._policy.handle(encode(message), time.time())
            if outcome.replies:
                return decode(outcome.replies[0].message)
        except DhcpError as error:
            raise Failed(f"{what} is not understood: {error}") from None
        said = [str(event.detail.get("why") or event.kind) for event in outcome.events]
        raise Failed(f"no answer to its {what}: {said[-1] if said else 'the server is silent'}")

    def _give_back(self, ip: IPv4Address, server: bytes) -> None:
        options = {int(Opt.TYPE): bytes((Type.RELEASE,)), int(Opt.SERVER_ID): server}
        message = Message(op=Op.REQUEST, xid=self._xid, chaddr=DOCTOR, ciaddr=ip, options=options)
        self._policy.handle(encode(message), time.time())

    # TFTP and AoE

    def _tftp(self, name: str) -> bytes:
        file = self._open(name)
        try:
            content = b"".join(file.read(at, 65536) for at in range(0, file.size, 65536))
        finally:
            file.close()
        if not content or len(content) != file.size:
            raise Failed(f"TFTP: {name} has {len(content)} bytes of {file.size}")
        self._note("TFTP", f"{name}, {len(content)} bytes")
        return content

    def _http(self, url: str) -> None:
        if not self._has_url(url):
            raise Failed(f"HTTP: {url} is not there, and that is what it is told to load")
        self._note("HTTP", f"{url} is there")

    def _aoe(self, text: str) -> None:
        found = _AOE_ROOT.search(text)
        if found is None:
            raise Failed(f"there is no AoE address in {text.strip()[:80]!r}")
        shelf, slot = int(found[1]), int(found[2])
        about = parse_config(self._ask(shelf, slot, Command.CONFIG, config_body()).body)
        raw = self._ask(shelf, slot, Command.ATA, ata_body(Ata.IDENTIFY, count=1))
        identity = parse_identity(parse_ata(raw.body).data)
        for lba in (0, identity.sectors - 1):
            body = transfer_body(lba, 1, None, lba48=True)
            reply = parse_ata(self._ask(shelf, slot, Command.ATA, body).body)
            if reply.bad or len(reply.data) < 512:
                raise Failed(f"AoE: sector {lba} of e{shelf}.{slot} cannot be read")
            if lba == 0 and reply.data[510:512] != b"\x55\xaa":
                raise Failed(
                    f"AoE: e{shelf}.{slot} is no boot disk: its first sector is not signed"
                )
        self._note(
            "AoE", f"e{shelf}.{slot}, {identity.sectors} sectors, {about.bufcnt} requests in flight"
        )

    def _ask(self, shelf: int, slot: int, command: int, body: bytes) -> Reply:
        frame = build(_SERVER, mac_bytes(DOCTOR), shelf, slot, command, 1, body)
        for answer in self._target.handle(frame, _SERVER):
            reply = parse(answer)
            if reply is not None and not reply.failed:
                return reply
        raise Failed(f"AoE: e{shelf}.{slot} does not answer: is it in the image?")
