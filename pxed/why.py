"""Why a boot stopped: from what was seen of it, a cause in plain words and the next step. Pure.

``explain`` looks at the last promise
that was made (OFFER or ACK) and at what came of it; how long it waits depends on how sure the
cause is and on what firmware may still do (docs/netboot.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pxed.conflicts import Finding, What
from pxed.dhcp.bootplan import BOOT_FILES, HTTP_FILES
from pxed.dhcp.classify import arch_name
from pxed.dhcp.replies import Mode
from pxed.events import Event, Kind
from pxed.scripts import AUTOEXEC
from pxed.seat import Client, Stage
from pxed.signed import GRUB, SHIM

AT_ONCE = 2.0  # seconds: nothing can change this cause but somebody who acts
NO_REQUEST = 15.0  # firmware takes an offer within 4 s, iPXE within 10
NO_FILE = 12.0  # from the ACK to the first question for a file: less than one second
STOPPED = 8.0  # after a transfer that failed: firmware tries again at once
PROBED = 15.0
NO_IPXE = 45.0  # from the last block to iPXE's DISCOVER: a few seconds, or a spanning tree's 30
NO_AOE = 30.0  # from iPXE's ACK to its first frame: a second
IPV6_WAIT = 16.0  # what iPXE waits in between where nobody advertises a router
NO_KERNEL = 75.0  # from the kernel's last byte to its AoE driver; 60 s of it may be a carrier wait
ONLY_IPV6 = 5.0  # from its first DHCPv6 SOLICIT: firmware that does both asks by both at once
GAP = 8.0  # from iPXE's last block to its DISCOVER: more than this is a link that does not forward


_TFTP = (Kind.TFTP_READ, Kind.TFTP_DONE, Kind.TFTP_PROBE, Kind.TFTP_MISSING, Kind.TFTP_FAILED)
_HTTP = (Kind.HTTP_READ, Kind.HTTP_DONE, Kind.HTTP_MISSING, Kind.HTTP_FAILED)
_AOE = (Kind.AOE_FOUND, Kind.AOE_READ, Kind.AOE_WRITE, Kind.AOE_HEARD)
_PROGRAMS = {*BOOT_FILES.values(), *HTTP_FILES.values()}
_DEBIANS = ("undionly.kpxe", "snponly.efi")
_NEWER = ("snponly-arm64.efi",)
_TARGETS = {
    "ipxe-i386.efi": "bin-i386-efi/ipxe.efi", "snponly-arm32.efi": "bin-arm32-efi/snponly.efi",
}  # fmt: skip
"""iPXE's name for what firmware of other kinds is told to load."""
_TREE = (
    "a switch port with spanning tree drops everything for 30 s after each link-up: "
    "set the seats' ports to edge (portfast)"
)


@dataclass(frozen=True, slots=True)
class Reason:
    """A cause, and what to do about it."""

    cause: str
    todo: str

    def __str__(self) -> str:
        return f"{self.cause}; {self.todo}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What the server knows beside the machine itself: its mode, a rival, ports and settings."""

    mode: Mode
    rival: Finding | None = None
    advertises: bool = True
    http_port: int = 80
    tftp_root: str = ""


def hint(trace: Sequence[Event]) -> Reason | None:
    """Something that delayed the step that has just come (the trace's last event), if it did."""
    if not trace or trace[-1].kind is not Kind.DISCOVER:
        return None
    now = trace[-1]
    if now.detail.get("firmware") == "ipxe":
        loaded = _program(trace)
        if loaded is not None and not _asked_since(trace[:-1], loaded):
            gap = now.time - trace[loaded].time
            if gap <= GAP:
                return None
            return Reason(f"{gap:.0f} s from loading iPXE to its first question", _TREE)
    secs = now.detail.get("secs")
    if len(trace) == 1 and isinstance(secs, int) and GAP <= secs <= 120:
        return Reason(f"it had been asking for {secs} s before anything arrived here", _TREE)
    return None


def _program(trace: Sequence[Event]) -> int | None:
    """Where in the trace an iPXE of ours was loaded last."""
    for n in range(len(trace) - 1, -1, -1):
        done = trace[n].kind in (Kind.TFTP_DONE, Kind.HTTP_DONE)
        if done and str(trace[n].detail.get("file")).rpartition("/")[2] in _PROGRAMS:
            return n
    return None


def _asked_since(trace: Sequence[Event], at: int) -> bool:
    return any(event.kind is Kind.DISCOVER for event in trace[at + 1 :])


def explain(client: Client, trace: Sequence[Event], now: float, scene: Scene) -> Reason | None:
    """Why this boot does not go on; None while that is not certain enough, or it goes on."""
    if client.stage is None:
        return _by_ipv6(trace, now)
    if client.stage >= Stage.SAN:
        return None  # from here on the machine itself reports
    failed = _last(trace, Kind.MIDLAYER_FAILED)
    if failed is not None:
        return Reason(
            f"its devices cannot be prepared: {failed.detail.get('why')}",
            "see the server's log; it is tried again at its next boot",
        )
    promises = [n for n, e in enumerate(trace) if e.kind in (Kind.OFFER, Kind.ACK)]
    acks = [n for n, e in enumerate(trace) if e.kind is Kind.ACK]
    asked = [n for n, e in enumerate(trace) if e.kind is Kind.DISCOVER]
    if not promises or (asked and asked[-1] > promises[-1]):
        refused = _refused(client, trace[asked[-1] if asked else 0 :], now)
        if refused is not None or not promises:
            return refused
    after = trace[promises[-1] + 1 :]
    if trace[-1].kind in (Kind.TFTP_READ, Kind.HTTP_READ):
        return None  # the end of that is told, however long it takes
    loaded = _last(trace, Kind.TFTP_DONE, Kind.HTTP_DONE)
    if loaded is not None and not any(_ipxe(trace[n]) for n in asked):
        return _never_came_back(client, loaded, now, scene)
    # The card has an iPXE of its own, which has loaded ours.
    program = _program(trace)
    if program is not None and not _asked_since(trace, program):
        return _never_came_back(client, trace[program], now, scene)
    acked = acks[-1] if acks else -1
    offer = trace[promises[-1]]
    if acked < (asked[-1] if asked else 0) and not any(e.kind in _TFTP + _HTTP for e in after):
        return _not_taken(client, trace, offer, now, scene)
    return _not_asked(client, trace[promises[-1]], after, now, scene)


def _by_ipv6(trace: Sequence[Event], now: float) -> Reason | None:
    """It has never asked by IPv4."""
    asked = [event for event in trace if event.kind is Kind.SOLICIT6]
    if not asked or now - asked[0].time < ONLY_IPV6:
        return None
    return Reason(
        "its firmware asks for a network boot by IPv6 only, and pxed serves IPv4",
        "switch on network boot by IPv4 in its firmware setup (PXE IPv4, IPv4 network stack)",
    )


def _refused(client: Client, trace: Sequence[Event], now: float) -> Reason | None:
    """We made no offer: the reason is our own."""
    full = _last(trace, Kind.POOL_FULL)
    if full is not None:
        size = full.detail.get("size")
        held = sum(int(str(full.detail.get(key) or 0)) for key in ("unclaimed", "idle"))
        # Free ones are kept for who asks again, where made-up addresses are at work.
        if full.detail.get("free") or 2 * held > int(str(size or 0)):
            return Reason(
                f"{held} of the {size} addresses in {full.detail.get('range')} are held for "
                "machines that do nothing with them",
                "if those are made up (pxed client list), find what asks in their name and unplug "
                "it: until then a new machine gets its address up to half a minute late; if they "
                "are not, widen [dhcp] range",
            )
        return Reason(
            f"no address is left in {full.detail.get('range')}",
            "widen [dhcp] range, or shorten [dhcp] lease",
        )
    ignored = _last(trace, Kind.IGNORED)
    if ignored is None or now - ignored.time < 0:
        return None
    why = str(ignored.detail.get("why", ""))
    if "nothing is planned" in why:
        kind = "" if client.firmware == "rpi" else f" ({arch_name(client.arch)})"
        return Reason(
            f"there is no image for its class, {client.class_name}{kind}",
            f"add [class.{client.class_name}] with an image to the configuration "
            "(docs/operators.md)",
        )
    if why.startswith("relayed from"):
        return Reason(why, "connect it to this server's Ethernet segment; or serve that one too")
    if "no kernel in its manifest" in why:
        return Reason(why, "build it again: pxed image build raspios-like")
    if "no boot file" in why:
        return Reason(why, "there is no iPXE for it here: take another boot mode in its firmware")
    if "for the boot service of" in why:
        return Reason(f"another boot server has it: {why}", "remove that one's boot options")
    return Reason(why, "see docs/operators.md, DHCP modes")


def _not_taken(
    client: Client, trace: Sequence[Event], offer: Event, now: float, scene: Scene
) -> Reason | None:
    """OFFER, and no REQUEST for it."""
    ignored = _last(trace, Kind.IGNORED)
    if ignored is not None and ignored.time >= offer.time:
        why = str(ignored.detail.get("why", ""))
        if "another DHCP server" in why or "for the boot service of" in why:
            if now - ignored.time < AT_ONCE:
                return None
            named = _named(scene.rival, why)
            if named and scene.rival is not None and _ends_in_e16(client, scene.rival):
                return _e16(scene.rival, f"it {why}")
            return Reason(
                f"it {why}{_named(scene.rival, why)}" if why.startswith("took") else why,
                _beside(scene),
            )
    since = now - offer.time
    first = next(e for e in trace if e.kind is Kind.OFFER)
    if since < NO_REQUEST and now - first.time < 3 * NO_REQUEST:
        return None
    rival = scene.rival
    if scene.mode is Mode.PROXY:
        return _proxy_not_taken(client, trace, scene)
    if rival is not None and rival.what is What.BOOT:
        if _ends_in_e16(client, rival):
            return _e16(rival, "another server's offer won")
        return Reason(f"another server's offer won, probably that of {_name(rival)}",
                      _beside(scene))  # fmt: skip
    offers = sum(1 for e in trace if e.kind is Kind.OFFER)
    if rival is not None:
        return Reason(
            f"it did not take our offer ({offers} made); {_name(rival)} may have been quicker",
            _beside(scene),
        )
    return Reason(
        f"it did not take our offer ({offers} made): probably our answers do not reach it",
        "look at DHCP snooping on the switch (trust this server's port), VLANs and firewalls",
    )


def _ends_in_e16(client: Client, rival: Finding) -> bool:
    return rival.asks_4011 and client.firmware == "pxe" and client.arch not in (None, 0)


def _e16(rival: Finding, what: str) -> Reason:
    return Reason(
        f"{what}: the boot server {_name(rival)} says PXEClient without option 43, so the firmware "
        "asks its port 4011 and ends with PXE-E16",
        "remove option 60 from that server, and its boot options",
    )


def _proxy_not_taken(client: Client, trace: Sequence[Event], scene: Scene) -> Reason:
    if scene.rival is not None and scene.rival.what is What.BOOT:
        return Reason(f"another boot server's offer won, probably that of {_name(scene.rival)}",
                      _beside(scene))  # fmt: skip
    took = _last(trace, Kind.REQUEST)
    if took is None or not took.detail.get("server"):
        if scene.rival is None:
            return Reason(
                "no DHCP server gave it an address, and in proxy mode we do not",
                'start the DHCP server, or set [dhcp] mode = "auto"',
            )
        return Reason(
            f"it took no address from the DHCP server {_name(scene.rival)}, and in proxy mode we "
            "give none",
            "look whether that server has an address for it (its range, its list of known "
            'machines), or set [dhcp] mode = "pxe-only"',
        )
    has = f"it has {took.detail.get('ip')} from the DHCP server {took.detail.get('server')}"
    if client.firmware == "uefi-http":
        return Reason(
            f"{has} and never asked for its boot file here",
            f"open port {scene.http_port}/tcp in this server's firewall",
        )
    if client.arch in (None, 0) or client.firmware == "rpi":
        return Reason(
            f"{has} and never asked for its boot file here",
            "open port 69/udp in this server's firewall",
        )
    return Reason(
        f"{has} and never asked port 4011 here for its boot file; its screen says PXE-E16",
        "open port 4011/udp in this server's firewall",
    )


def _not_asked(
    client: Client, promise: Event, after: Sequence[Event], now: float, scene: Scene
) -> Reason | None:
    """It knows what to load; has it, and did that work?"""
    since = now - (after[-1].time if after else promise.time)
    if promise.detail.get("root_path"):
        return _no_aoe(after, now - promise.time, scene)
    file = str(promise.detail.get("boot_file", ""))
    by_http = file.startswith("http:")
    loads = [e for e in after if e.kind in (_HTTP if by_http else _TFTP)]
    if by_http and client.stage is Stage.IPXE:
        since -= 0 if scene.advertises else IPV6_WAIT
    if not loads:
        return None if since < NO_FILE else _file_not_asked(client, file, by_http, scene)
    last = loads[-1]
    name = last.detail.get("file")
    if last.kind in (Kind.TFTP_MISSING, Kind.HTTP_MISSING) and since >= AT_ONCE:
        if client.firmware == "rpi":
            return Reason(
                f"it found none of its files; the last it asked for was {name}",
                "put the Pi's firmware into the boot directory of its image",
            )
        return Reason(
            f"it asked for {name}, which is not here",
            _get(str(name), scene.tftp_root or "[tftp] root"),
        )
    if last.kind in (Kind.TFTP_FAILED, Kind.HTTP_FAILED) and since >= STOPPED:
        return Reason(
            f"loading {name} stopped: {last.detail.get('why')}",
            "look at its cable, at the MTU of the switches between, and at firewalls",
        )
    if last.kind is Kind.TFTP_PROBE and since >= PROBED:
        return Reason(
            f"it asked for the size of {name} and then did not load it",
            "the file may be for another architecture or too large for its firmware, or blocks of "
            "that size do not come through: look at the MTU of the switches between",
        )
    if last.kind is Kind.TFTP_DONE and client.stage is Stage.IPXE:  # a script: its disk is next
        return _no_aoe(after, since, scene)
    if last.kind is Kind.HTTP_DONE and client.stage is Stage.IPXE and since >= NO_KERNEL:
        return _no_kernel(str(name))
    return None


_BELIEVED = "Microsoft's UEFI CA (third-party CA) not allowed, a kernel that Debian did not sign, "


def _no_kernel(name: str, more: str = "") -> Reason:
    return Reason(
        f"it loaded {name} and its kernel has not found its disks",
        f"see its screen: {more}a missing network driver in the initrd, or a VLAN or switch filter "
        "for Ethernet type 0x88A2",
    )


def _no_configuration(name: str, scene: Scene) -> Reason:
    """GRUB asks the server that the answer with its address named, whoever named the boot file."""
    if scene.mode is Mode.PROXY:
        return Reason(
            f"it loaded {name}, which looks for grub.cfg where the site's DHCP server says",
            "make this server's address the next-server (siaddr) there, or let the seat boot by "
            'UEFI HTTP boot, or use mode = "pxe-only"',
        )
    return Reason(
        f"it loaded {name} and asked for no grub.cfg: shim does not believe that file",
        "see its screen; take shimx64.efi and grubx64.efi from the same release of Debian",
    )


def _file_not_asked(client: Client, file: str, by_http: bool, scene: Scene) -> Reason:
    if scene.rival is not None and scene.rival.what is What.BOOT:
        return Reason(
            f"it never asked here for {file}: it may load {scene.rival.offer} from "
            f"{_name(scene.rival)}",
            _beside(scene),
        )
    port = f"{scene.http_port}/tcp" if by_http else "69/udp"
    if client.firmware == "rpi":
        return Reason(
            "it has an address and never asked for its first file",
            f"open port {port} in this server's firewall; if it is open: its boot order must have "
            "the network in it, and a 3B+ no card in its slot",
        )
    return Reason(
        f"it has an address and never asked for {file or 'its boot file'}",
        f"open port {port} in this server's firewall; if it is open: a firewall between, or "
        "firmware that gave up (switch it off and on once)",
    )


def _get(name: str, root: str) -> str:
    if name in _DEBIANS:
        return f"install Debian's package ipxe, or put it into {root}"
    if name in _NEWER:
        return f"pxed ipxe fetch brings it, or put it into {root}; then start pxed serve again"
    target = _TARGETS.get(name)
    how = f" (make {target})" if target else ""
    return (
        f"Debian has none of that kind: build it from iPXE's source{how} and put it into {root} "
        "under that name, or set its firmware to another boot mode"
    )


def _never_came_back(client: Client, loaded: Event, now: float, scene: Scene) -> Reason | None:
    """iPXE is there, and no DISCOVER of its."""
    if now - loaded.time < NO_IPXE:
        return None
    name = str(loaded.detail.get("file"))
    if name.endswith("/vmlinuz"):
        return Reason(
            f"it loaded {name} and not its initrd: with Secure Boot on, only a kernel that Debian "
            "has signed is started",
            "see its screen; build the image with Debian's own kernel",
        )
    if name.endswith(".img"):  # a disk with all of the chain
        return None if now - loaded.time < NO_KERNEL else _no_kernel(name, _BELIEVED)
    if "@" in name:  # a kernel in an EFI program, or an initrd: its disks come next
        return None if now - loaded.time < NO_KERNEL else _no_kernel(name)
    if client.firmware == "rpi":
        return None  # its kernel comes next, not iPXE
    if name == SHIM:
        return Reason(
            f"it loaded {name} and asked for nothing more: its firmware does not believe that file",
            "allow Microsoft's UEFI CA (third-party CA) in its Secure Boot settings",
        )
    if name == GRUB:
        return _no_configuration(name, scene)
    if name.endswith(AUTOEXEC):
        return Reason(f"it loaded {name} and was not heard again", _TREE)
    if client.arch in (None, 0):
        return Reason(f"it loaded {name} and was not heard again", _TREE)
    return Reason(
        f"it loaded {name} and was not heard again: Secure Boot refuses programs without a "
        "signature",
        "switch Secure Boot off in its firmware, or set [class.x86] secure_boot = true; "
        f"if it is off: {_TREE}",
    )


def _no_aoe(after: Sequence[Event], since: float, scene: Scene) -> Reason | None:
    """iPXE knows its disk."""
    if since < NO_AOE + (0 if scene.advertises else IPV6_WAIT):
        return None
    if any(e.kind in _AOE for e in after):
        return Reason(
            "it found its AoE disk and never read from it",
            "large frames do not come through: look at the MTU of the switches between",
        )
    return Reason(
        "iPXE has an address and its disk's, and no AoE frame of its arrived",
        "look for a VLAN boundary, a router or a switch filter for Ethernet type 0x88A2 between "
        "it and this server",
    )


def _beside(scene: Scene) -> str:
    if scene.mode is Mode.PROXY:
        return "remove the boot options of that server"
    return 'remove the boot options of that server, or set [dhcp] mode = "proxy" or "auto"'


def _name(rival: Finding) -> str:
    return f"{rival.ip} ({rival.mac})" if rival.ip else rival.mac


def _named(rival: Finding | None, why: str) -> str:
    """More of the server that ``why`` ends with, where it is known."""
    if rival is None or not rival.ip or rival.ip not in why:
        return ""
    boots = f", which offers {rival.offer}" if rival.what is What.BOOT else ""
    return f" ({rival.mac}){boots}"


def _ipxe(event: Event) -> bool:
    return event.detail.get("firmware") == "ipxe"


def _last(trace: Sequence[Event], *kinds: Kind) -> Event | None:
    return next((e for e in reversed(trace) if e.kind in kinds), None)
