"""Which DHCP message gets which answer: bytes and the time in, replies and events out. Sans-IO.

The modes (docs/netboot.md): ``pxe-only`` gives boot firmware a temporary lease and is silent to
everybody else; ``all`` is the segment's DHCP server; ``proxy`` adds boot information to another
server's lease. Nothing here trusts a transaction id or one message's claim to be firmware: what a
machine was offered decides how its REQUEST is met.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from pxed.dhcp import replies
from pxed.dhcp.bootplan import BootPlan, Choice, Step, choose
from pxed.dhcp.classify import Firmware, Identity, identify
from pxed.dhcp.codec import NOWHERE, Message, Op, Opt, Type, decode
from pxed.dhcp.lease import Lease, State, carve
from pxed.dhcp.leases import HOLD, Leases
from pxed.dhcp.replies import Mode, Reply, Settings
from pxed.dhcp.rival import LOOKING
from pxed.events import Event, Kind
from pxed.mac import Mac

PlanFor = Callable[[Mac, Firmware, int | None, frozenset[int]], BootPlan | None]
"""The application's answer to "what does this machine boot?"; None: it gets no answer."""

CHAIN_SECONDS = 60.0
"""An iPXE that asks within this time of being told to load ours is taken for ours."""
CHAINS = 3
"""How often an iPXE is told to load ours before one that got on: a slow loop is a loop too."""
CHAINS_SECONDS = 600.0
"""And how long after the last time it may try again."""
RPI3_HOLD = 60.0
"""Seconds that a Pi 3's offer holds: no REQUEST follows; its first read of a file takes it."""
LAST = 1.0
"""Seconds that UEFI waits for our offer where another server makes one too. EDK2 collects offers
for almost four seconds and ranks ours first, but takes the address of whichever came last."""
_MEMORY = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one message led to.

    ``probe`` is set where an offer is for an address that was never used here: a careful adapter
    looks for somebody who already has it before it sends (RFC 2131 section 2.2), and calls
    ``Policy.conflict`` if there is one.
    """

    replies: tuple[Reply, ...] = ()
    events: tuple[Event, ...] = ()
    probe: IPv4Address | None = None


@dataclass(slots=True)
class _Seen:
    """What a machine was last offered; a REQUEST may say less than the DISCOVER before it."""

    who: Identity
    choice: Choice | None
    chain_xid: int | None = None
    chain_time: float = 0.0
    chains: int = 0  # from iPXE to iPXE, with nothing else between


@dataclass(slots=True)
class _Case:
    """One message being handled."""

    message: Message
    now: float
    events: list[Event] = field(default_factory=list)

    @property
    def mac(self) -> Mac:
        return self.message.chaddr

    def event(self, kind: Kind, **detail: object) -> None:
        self.events.append(Event(kind, self.mac, self.now, detail))

    def ignored(self, why: str) -> Outcome:
        self.event(Kind.IGNORED, why=why)
        return Outcome((), tuple(self.events))

    def done(self, reply: Reply, probe: IPv4Address | None = None) -> Outcome:
        return Outcome((reply,), tuple(self.events), probe)


class Policy:
    """The server's decisions. ``leases`` is not used in proxy mode.

    ``beside``: another DHCP server answers here too, as far as is known.
    """

    def __init__(self, settings: Settings, leases: Leases, plan: PlanFor) -> None:
        self.settings = settings
        self.leases = leases
        self.beside = False
        self._plan = plan
        self._seen: OrderedDict[Mac, _Seen] = OrderedDict()
        self._keep_out()

    def update_server(self, server: IPv4Address, prefixlen: int) -> bool:
        """The server's own address is now this one (M1); True if anything changed.

        The range stays if it is inside the new subnet; if not, a new one is carved from it.
        """
        if (server, prefixlen) == (self.settings.server, self.settings.prefixlen):
            return False
        network = self.settings.network
        self.settings = replace(self.settings, server=server, prefixlen=prefixlen)
        if self.settings.network != network and self.settings.router is not None:
            # The old router is not on the new subnet: none is better than a wrong one.
            self.settings = replace(self.settings, router=None)
        self._keep_out()
        return True

    def configure(
        self, router: IPv4Address | None, dns: tuple[IPv4Address, ...], lease: int
    ) -> None:
        """What answers say from now on; the new router's address is nobody else's."""
        moved = router != self.settings.router
        self.settings = replace(self.settings, router=router, dns=dns, lease=lease)
        if moved:
            self._keep_out()

    def taken(self, mac: Mac, now: float) -> None:
        """The machine uses the address on offer, whether it said so or not (a Pi 3 never does)."""
        lease = self.leases.of(mac, now)
        if lease is not None and lease.state is State.OFFERED:
            self.leases.bind(mac, lease.ip, now, self.settings.lease)

    def set_mode(self, mode: Mode) -> None:
        """From now on this mode; leases that were given run on to their end."""
        self.settings = replace(self.settings, mode=mode)

    def conflict(self, ip: IPv4Address, holder: Mac, now: float) -> bool:
        """``holder`` answered a probe for ``ip``: not to be offered; True if it was on offer."""
        return self.leases.conflict(ip, holder, now)

    def handle(self, data: bytes, now: float, source: IPv4Address = NOWHERE) -> Outcome:
        """Answer a datagram that came to port 67 from ``source``. DhcpError if it is no message.

        A router may bring one from anywhere, in any machine's name: it is no word of that machine.
        """
        message = decode(data)
        case = _Case(message, now)
        if message.op != Op.REQUEST:
            return Outcome()  # another server's reply to a relay on this host
        network = self.settings.network
        near = source == NOWHERE or source in network
        if not near and (message.giaddr == NOWHERE or message.giaddr in network):
            return Outcome()
        if self._strange_relay(message.giaddr):
            who = identify(message)
            if message.type == Type.DISCOVER and who.boots:
                case.event(Kind.DISCOVER, firmware=str(who.firmware), arch=who.arch, relayed=True)
            return case.ignored(
                f"relayed from {message.giaddr}, another subnet: AoE does not pass routers"
            )
        # A proxy gives no address, but keeps the promises from before it became one.
        leases = self.settings.mode is not Mode.PROXY or self._promised(case)
        match message.type:
            case Type.DISCOVER:
                outcome = self._discover(case)
                if message.options.get(Opt.HOST_NAME) == LOOKING:
                    return replace(outcome, events=(), probe=None)
                return outcome
            case Type.REQUEST if leases:
                return self._request(case)
            case Type.DECLINE if leases:
                return self._decline(case)
            case Type.RELEASE if leases:
                return self._release(case)
            case Type.INFORM if self.settings.mode is not Mode.PROXY:
                return self._inform(case)
            case Type.REQUEST:
                return self._taken_elsewhere(case)
            case None:
                return case.ignored("plain BOOTP: no message type")
            case other:
                return case.ignored(
                    f"message type {other} is not for a {self.settings.mode} server"
                )

    def _promised(self, case: _Case) -> bool:
        lease = self.leases.of(case.mac, case.now)
        theirs = case.message.address(Opt.SERVER_ID)
        return lease is not None and theirs in (None, self.settings.server)

    def handle_boot(self, data: bytes, now: float, source: tuple[IPv4Address, int]) -> Outcome:
        """Answer a datagram that came to port 4011 from ``source``. DhcpError as ``handle``."""
        message = decode(data)
        case = _Case(message, now)
        if message.op != Op.REQUEST or message.type not in (Type.REQUEST, Type.INFORM):
            return case.ignored("not a request to a boot service")
        theirs = message.address(Opt.SERVER_ID)
        if theirs not in (None, self.settings.server):
            return case.ignored(f"for the boot service of {theirs}")
        who = identify(message)
        seen = self._seen.get(case.mac)
        choice = self._decide(case, who) if seen is None or seen.who != who else seen.choice
        if choice is None or choice.step is Step.REFUSE:
            return case.ignored(_why(choice))
        case.event(Kind.REQUEST, firmware=str(who.firmware), arch=who.arch, ip=str(source[0]))
        reply = replies.boot_service_ack(message, self.settings, who, choice, source)
        case.event(Kind.ACK, ip=str(source[0]), boot_file=choice.file, root_path=choice.root_path)
        return case.done(reply)

    def _strange_relay(self, relay: IPv4Address) -> bool:
        """Addresses are only given out on the server's own subnet; a proxy gives none."""
        if relay == NOWHERE or self.settings.mode is Mode.PROXY:
            return False
        return relay not in self.settings.network

    # DISCOVER

    def _discover(self, case: _Case) -> Outcome:
        message, settings = case.message, self.settings
        who = identify(message)
        if not who.boots and settings.mode is not Mode.ALL:
            return self._left_to_the_site(case)
        more: dict[str, object] = {"serial": who.serial} if who.serial else {}
        if message.giaddr != NOWHERE and message.giaddr not in settings.network:
            more["relayed"] = True
        if who.boots and message.secs:
            more["secs"] = message.secs
        case.event(Kind.DISCOVER, firmware=str(who.firmware), arch=who.arch, **more)
        choice = self._decide(case, who) if who.boots else None
        if who.boots and (choice is None or choice.step is Step.REFUSE):
            return case.ignored(_why(choice))
        if settings.mode is Mode.PROXY:
            assert choice is not None
            self._remember(case, who, choice, promised=True)
            reply = replies.proxy_offer(message, settings, who, choice)
            case.event(Kind.OFFER, ip="", boot_file=choice.file, root_path=choice.root_path)
            return case.done(reply)
        hold = RPI3_HOLD if who.rpi3 else HOLD
        wanted = message.address(Opt.REQUESTED_IP)
        fresh = self.leases.of(case.mac, case.now) is None
        lease = self.leases.offer(case.mac, case.now, wanted, hold)
        if lease is None:
            case.event(
                Kind.POOL_FULL, range=self.leases.range, size=self.leases.size,
                unclaimed=self.leases.unclaimed, idle=self.leases.idle, free=self.leases.free,
            )  # fmt: skip
            return Outcome((), tuple(case.events))
        looked_at = self.leases.ahead.spend(lease.ip, case.now) or self.leases.is_home(lease.ip)
        probe = lease.ip if fresh and not looked_at else None
        self._remember(case, who, choice)
        reply = replies.lease_reply(message, Type.OFFER, settings, who, choice, lease.ip)
        if self.beside and _is_uefi(who):
            reply = replace(reply, delay=max(reply.delay, LAST))
        case.event(Kind.OFFER, ip=str(lease.ip), **_boot_detail(choice))
        return case.done(reply, probe)

    def _left_to_the_site(self, case: _Case) -> Outcome:
        """An operating system asks: the boot phase is over, the temporary lease comes back (M3)."""
        lease = None
        if self.settings.mode is Mode.PXE_ONLY:
            lease = self.leases.of(case.mac, case.now)
        if lease is not None and self.leases.release(case.mac, lease.ip, case.now):
            case.event(Kind.RELEASE, ip=str(lease.ip))
        return case.ignored("not network-boot firmware: left to the site's DHCP server")

    def _taken_elsewhere(self, case: _Case) -> Outcome:
        """Proxy mode: firmware takes an address, and from whom is good to know."""
        message, who = case.message, identify(case.message)
        ip = message.address(Opt.REQUESTED_IP) or message.ciaddr
        theirs = message.address(Opt.SERVER_ID)
        if not who.boots or theirs is None:
            return case.ignored("asks its DHCP server for an address")
        case.event(Kind.REQUEST, firmware=str(who.firmware), arch=who.arch, ip=str(ip),
                   server=str(theirs))  # fmt: skip
        return Outcome((), tuple(case.events))

    # REQUEST (RFC 2131 section 4.3.2)

    def _request(self, case: _Case) -> Outcome:
        message = case.message
        theirs = message.address(Opt.SERVER_ID)
        wanted = message.address(Opt.REQUESTED_IP)
        if theirs is not None:
            if theirs != self.settings.server:
                self.leases.withdraw(case.mac, case.now)
                return case.ignored(f"took the offer of another DHCP server, {theirs}")
            return self._selecting(case, wanted or message.ciaddr)
        ip = message.ciaddr if message.ciaddr != NOWHERE else wanted
        if ip is None:
            return case.ignored("a request that names neither a server nor an address")
        return self._confirm(case, ip)

    def _selecting(self, case: _Case, ip: IPv4Address) -> Outcome:
        """Our own offer is being taken."""
        who = identify(case.message)
        seen = self._seen.get(case.mac)
        if seen is None and self.settings.mode is not Mode.ALL and not who.boots:
            return self._refuse(case, ip, "no offer of ours")
        lease = self.leases.bind(case.mac, ip, case.now, self.settings.lease)
        if lease is None:
            return self._refuse(case, ip, "the address is not yours")
        return self._ack(case, who, lease)

    def _confirm(self, case: _Case, ip: IPv4Address) -> Outcome:
        """INIT-REBOOT, RENEWING or REBINDING: the client says what address it has."""
        mine = self.leases.of(case.mac, case.now)
        if mine is not None and mine.ip == ip:
            lease = self.leases.bind(case.mac, ip, case.now, self.settings.lease, renews=True)
            assert lease is not None
            return self._ack(case, identify(case.message), lease)
        if self.settings.mode is not Mode.ALL:
            return case.ignored(f"has {ip} from another DHCP server")
        if ip not in self.settings.network:
            return self._refuse(case, ip, f"{ip} is not on this network")
        # An expired lease goes on if nobody else got the address (RFC 2131 section 4.3.2).
        lease = None
        if self.leases.is_known(case.mac) and mine is None:
            lease = self.leases.bind(case.mac, ip, case.now, self.settings.lease)
        if lease is None:
            return self._refuse(case, ip, "no such lease here")
        return self._ack(case, identify(case.message), lease)

    def _ack(self, case: _Case, who: Identity, lease: Lease) -> Outcome:
        seen = self._seen.get(case.mac)
        offered = case.message.address(Opt.SERVER_ID) is not None and seen is not None
        if offered and seen is not None and (seen.who == who or not who.boots):
            who, choice = seen.who, seen.choice
        else:
            choice = self._decide(case, who) if who.boots else None
        case.event(Kind.REQUEST, firmware=str(who.firmware), arch=who.arch, ip=str(lease.ip))
        if choice is not None and choice.step is Step.REFUSE:
            choice = None
        self._remember(case, who, choice, promised=True)
        reply = replies.lease_reply(case.message, Type.ACK, self.settings, who, choice, lease.ip)
        case.event(Kind.ACK, ip=str(lease.ip), **_boot_detail(choice))
        return case.done(reply)

    def _refuse(self, case: _Case, ip: IPv4Address, why: str) -> Outcome:
        case.event(Kind.NAK, ip=str(ip), why=why)
        return case.done(replies.nak(case.message, self.settings.server, why))

    # The rest

    def _decline(self, case: _Case) -> Outcome:
        message = case.message
        ip = message.address(Opt.REQUESTED_IP)
        if message.address(Opt.SERVER_ID) not in (None, self.settings.server) or ip is None:
            return case.ignored("declines another server's address")
        if not self.leases.decline(case.mac, ip, case.now):
            return case.ignored(f"declines {ip}, which is not its own")
        case.event(Kind.DECLINE, ip=str(ip))
        return Outcome((), tuple(case.events))

    def _release(self, case: _Case) -> Outcome:
        message = case.message
        theirs = message.address(Opt.SERVER_ID)
        if theirs is None:  # RFC 2131 table 5: a MUST
            return case.ignored("a release that names no server: the lease runs to its end")
        if theirs != self.settings.server:
            return case.ignored("releases another server's address")
        if not self.leases.release(case.mac, message.ciaddr, case.now):
            return case.ignored(f"releases {message.ciaddr}, which is not its own")
        case.event(Kind.RELEASE, ip=str(message.ciaddr))
        return Outcome((), tuple(case.events))

    def _inform(self, case: _Case) -> Outcome:
        """RFC 2131 section 4.3.5: parameters without a lease."""
        who = identify(case.message)
        if case.message.ciaddr == NOWHERE:
            return case.ignored("asks for parameters without an address")
        choice = self._decide(case, who) if who.boots else None
        if self.settings.mode is not Mode.ALL and not who.boots:
            return case.ignored("not network-boot firmware: left to the site's DHCP server")
        if who.boots and (choice is None or choice.step is Step.REFUSE):
            return case.ignored(_why(choice))
        ip = str(case.message.ciaddr)
        reply = replies.lease_reply(case.message, Type.ACK, self.settings, who, choice, None)
        case.event(Kind.ACK, ip=ip, **_boot_detail(choice))
        return case.done(reply)

    # What to boot

    def _decide(self, case: _Case, who: Identity) -> Choice | None:
        plan = self._plan(case.mac, who.firmware, who.arch, who.features)
        if plan is None:
            return None
        seen = self._seen.get(case.mac)
        chained = (
            seen is not None
            and seen.chain_xid is not None
            and seen.chain_xid != case.message.xid  # the same: a repetition of that very question
            and case.now - seen.chain_time < CHAIN_SECONDS
        )
        if seen is not None and seen.chains >= CHAINS and seen.chain_xid != case.message.xid:
            chained = chained or case.now - seen.chain_time < CHAINS_SECONDS
        proxy = self.settings.mode is Mode.PROXY
        return choose(plan, who.firmware, who.arch, who.features, chained=chained, proxy=proxy)

    def _remember(
        self, case: _Case, who: Identity, choice: Choice | None, *, promised: bool = False
    ) -> None:
        """Keep what was said to this machine; ``promised``: it now loads what it was told to."""
        seen = self._seen.pop(case.mac, None) or _Seen(who, choice)
        seen.who, seen.choice = who, choice
        if promised and choice is not None and who.firmware is Firmware.IPXE:
            again = choice.step is Step.CHAIN and case.now - seen.chain_time < CHAINS_SECONDS
            repeated = seen.chain_xid == case.message.xid
            seen.chains = seen.chains + (not repeated) if again else int(choice.step is Step.CHAIN)
        if promised and choice is not None and choice.step is Step.CHAIN:
            seen.chain_xid, seen.chain_time = case.message.xid, case.now
        self._seen[case.mac] = seen
        if len(self._seen) > max(_MEMORY, 2 * self.leases.size):
            self._seen.popitem(last=False)

    def _keep_out(self) -> None:
        """Fit the pool to the server's subnet, and keep the server and the router out of it."""
        settings, leases = self.settings, self.leases
        taken = {settings.server} | ({settings.router} if settings.router is not None else set())
        first, last = leases.pool.first, leases.pool.last
        if first not in settings.network or last not in settings.network:
            first, last = carve(settings.network, taken)
        leases.set_range(first, last, exclude=taken)


def _is_uefi(who: Identity) -> bool:
    return who.firmware in (Firmware.PXE, Firmware.UEFI_HTTP) and who.arch not in (None, 0)


def _why(choice: Choice | None) -> str:
    return "nothing is planned for this machine" if choice is None else choice.why


def _boot_detail(choice: Choice | None) -> dict[str, object]:
    if choice is None:
        return {"boot_file": "", "root_path": ""}
    return {"boot_file": choice.file, "root_path": choice.root_path}
