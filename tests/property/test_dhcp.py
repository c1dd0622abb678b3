"""DHCP: any bytes parse or raise the declared error; what is written reads the same."""

import contextlib
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pxed.dhcp.bootplan import BOOT_FILES, BootPlan
from pxed.dhcp.classify import Firmware, identify
from pxed.dhcp.codec import DhcpError, Message, decapsulate, decode, encapsulate, encode
from pxed.dhcp.lease import State
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.dhcp.solicit6 import solicit
from pxed.mac import Mac, mac_text
from pxed.net.icmpv6 import solicitation
from pxed.net.packet import arp_sender

ips = st.integers(0, 2**32 - 1).map(IPv4Address)
macs = st.binary(min_size=6, max_size=6).filter(lambda b: not b[0] & 1 and any(b)).map(mac_text)
text = st.binary(max_size=60).filter(lambda b: b"\0" not in b)
codes = st.integers(1, 254).filter(lambda code: code != 52)
messages = st.builds(
    Message,
    op=st.sampled_from([1, 2]),
    xid=st.integers(0, 2**32 - 1),
    chaddr=macs,
    secs=st.integers(0, 65535),
    flags=st.sampled_from([0, 0x8000]),
    hops=st.integers(0, 255),
    ciaddr=ips,
    yiaddr=ips,
    siaddr=ips,
    giaddr=st.one_of(st.just(IPv4Address(0)), ips),
    sname=text,
    file=text,
    options=st.dictionaries(codes, st.binary(max_size=300), max_size=8),
)
heads = messages.map(lambda message: encode(message, 9000)[:240])
# What firmware says, in any combination: these reach the branches that random bytes do not.
likely = st.fixed_dictionaries(
    {53: st.integers(1, 8).map(lambda n: bytes((n,)))},
    optional={
        50: st.one_of(st.binary(max_size=5), st.just(b"\x0a\x4d\0\x32")),
        54: st.sampled_from([b"\x0a\x4d\0\1", b"\x0a\x4d\0\2", b""]),
        57: st.binary(max_size=3),
        60: st.sampled_from([b"PXEClient:Arch:00000:UNDI:002001", b"HTTPClient", b"dhcpcd"]),
        77: st.just(b"iPXE"),
        82: st.binary(min_size=1, max_size=40),
        93: st.sampled_from([b"\0\0", b"\0\7", b"\0\x10", b"\0", b""]),
        97: st.binary(max_size=20),
        175: st.one_of(st.just(b"\x12\1\1"), st.binary(max_size=20)),
    },
)


@given(st.binary(max_size=700))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(DhcpError):
        decode(data)


@given(heads, st.binary(max_size=400))
def test_any_options(head: bytes, data: bytes) -> None:
    with contextlib.suppress(DhcpError):
        identify(decode(head + data))


@given(messages)
def test_round_trip(message: Message) -> None:
    assert decode(encode(message, 9000)) == message


@given(messages, st.integers(576, 1500))
def test_the_limit_holds(message: Message, limit: int) -> None:
    message.file = message.sname = b""
    try:
        data = encode(message, limit)
    except DhcpError:
        return
    assert 300 <= len(data) <= limit - 28
    assert decode(data).options == message.options


@given(messages, st.binary(max_size=50))
def test_rubbish_after_the_end_changes_nothing(message: Message, rubbish: bytes) -> None:
    data = encode(message, 9000)
    assert decode(data + rubbish) == decode(data)


@given(st.dictionaries(st.integers(1, 254), st.binary(max_size=255)))
def test_encapsulation(items: dict[int, bytes]) -> None:
    assert decapsulate(encapsulate(items)) == items


@given(st.binary(max_size=300))
def test_any_encapsulation(data: bytes) -> None:
    decapsulate(data)
    solicitation(data)
    solicit(b"\x02" * 12 + b"\x86\xdd" + bytes(6) + b"\x11" + bytes(35) + b"\x02\x23" + bytes(4)
            + b"\1xid" + data)  # fmt: skip
    arp_sender(data)


def plan(
    mac: Mac, firmware: Firmware, arch: int | None, features: frozenset[int]
) -> BootPlan | None:
    return BootPlan(BOOT_FILES.get(arch or 0), "aoe:e16.0", "http://s/boot", "http://s/x.efi")


@settings(max_examples=300)
@given(st.sampled_from(Mode), st.lists(st.tuples(messages, likely), min_size=1, max_size=5))
def test_the_policy_answers_or_raises_the_declared_error(
    mode: Mode, asked: list[tuple[Message, dict[int, bytes]]]
) -> None:
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.53"))
    policy = Policy(Settings(mode, IPv4Address("10.77.0.1"), 24), leases, plan)
    for now, (message, options) in enumerate(asked):
        message.options = options
        data = encode(message, 9000)
        for outcome in (
            policy.handle(data, now),
            policy.handle_boot(data, now, (IPv4Address("10.77.0.9"), 4011)),
        ):
            for reply in outcome.replies:
                answer = decode(reply.message)
                assert (answer.op, answer.xid, answer.chaddr) == (2, message.xid, message.chaddr)
                assert len(reply.message) <= max(576, message.max_size) - 28


class Pool(RuleBasedStateMachine):
    """However machines ask, an address has one owner, and no table grows past the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = Leases(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.12"))

    pool_macs = st.integers(0, 30).map(lambda n: mac_text(b"\x02\0\0\0\0" + bytes((n,))))
    pool_ips = st.integers(0, 14).map(lambda n: IPv4Address("10.0.0.0") + n)

    @rule(mac=pool_macs, wanted=st.one_of(st.none(), pool_ips))
    def offer(self, mac: Mac, wanted: IPv4Address | None) -> None:
        leases, home = self.leases, self.leases.homes.of(mac)
        fresh = leases.of(mac, self.now) is None
        there = leases._active.get(home) if home is not None else None
        lease = leases.offer(mac, self.now, wanted)
        if leases.homes.is_real(mac) and fresh and there is None:
            assert lease is not None
            assert lease.ip == home
        if lease is not None:
            assert self.leases.owner(lease.ip, self.now) == mac
            assert lease.ip in self.leases

    @rule(mac=pool_macs)
    def boot(self, mac: Mac) -> None:
        lease = self.leases.offer(mac, self.now)
        if lease is not None:
            taken = self.leases.bind(mac, lease.ip, self.now, 600)
            assert taken is not None
            assert taken.state is State.BOUND

    @rule(mac=pool_macs, ip=pool_ips)
    def bind(self, mac: Mac, ip: IPv4Address) -> None:
        owner = self.leases.owner(ip, self.now)
        if self.leases.bind(mac, ip, self.now, 60) is not None:
            assert owner in (None, mac)

    @rule(mac=pool_macs)
    def use(self, mac: Mac) -> None:
        self.leases.used(mac, self.now)

    @rule(mac=pool_macs, ip=pool_ips)
    def conflict(self, mac: Mac, ip: IPv4Address) -> None:
        self.leases.conflict(ip, mac, self.now)

    @rule(mac=pool_macs)
    def comes_back(self, mac: Mac) -> None:
        """A machine that was there finds no stranger in its home, whatever that one did."""
        leases, home = self.leases, self.leases.homes.of(mac)
        if not leases.homes.is_real(mac) or leases.of(mac, self.now) is not None or home is None:
            return
        there = leases._active.get(home)
        taken = there is not None and (
            there.state is State.DECLINED or leases.homes.is_real(there.mac)
        )
        lease = leases.offer(mac, self.now)
        assert taken or (lease is not None and lease.ip == home)

    @rule(mac=pool_macs, ip=pool_ips)
    def release(self, mac: Mac, ip: IPv4Address) -> None:
        self.leases.release(mac, ip, self.now)

    @rule(mac=pool_macs, ip=pool_ips)
    def decline(self, mac: Mac, ip: IPv4Address) -> None:
        self.leases.decline(mac, ip, self.now)

    @rule(mac=pool_macs)
    def withdraw(self, mac: Mac) -> None:
        self.leases.withdraw(mac, self.now)

    @rule(seconds=st.sampled_from([0.5, 11.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(last=st.integers(4, 12))
    def move(self, last: int) -> None:
        self.leases.set_range(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.0") + last)

    @rule()
    def restart(self) -> None:
        kept = list(self.leases.export())
        fresh = Leases(self.leases.pool.first, self.leases.pool.last)
        fresh.restore(kept, self.now)
        again = {record.ip: record.mac for record in fresh.export()}
        assert {k.ip for k in kept if k.state is not State.RELEASED} >= {
            r.ip for r in fresh.export() if r.state is State.BOUND
        }
        assert set(again) <= {record.ip for record in kept}
        self.leases = fresh

    @invariant()
    def consistent(self) -> None:
        leases, homes = self.leases, self.leases.homes
        away = {ip for ip in homes._at if ip not in leases._active}
        assert {ip for ip in away if homes._at[ip] in homes._real} == set(homes.away)
        assert away - set(homes.away) == set(homes.doubtful)
        idle = {ip for ip, lease in leases._active.items()
                if lease.state is State.BOUND and lease.mac not in homes._real}  # fmt: skip
        assert idle == set(leases._idle)
        assert homes._real <= set(homes._of)
        assert len(leases._former) <= leases.size
        assert len(leases._active) <= leases.size
        assert len(homes._of) == len(homes._at) <= leases.size
        assert {mac: ip for ip, mac in homes._at.items()} == homes._of
        for mac, ip in leases._of_mac.items():
            assert leases._active[ip].mac == mac
        assert len(leases._ends) <= 4 * len(leases._active) + 65


TestPool = Pool.TestCase
