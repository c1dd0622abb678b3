"""Which message gets which answer, and where it goes: the modes, REQUESTs, the server's address."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from pxed.dhcp.codec import BROADCAST_FLAG, DhcpError, Op, Opt, Type, encode
from pxed.dhcp.policy import Outcome
from pxed.dhcp.replies import Destination, Mode
from pxed.dhcp.replies import Kind as To
from pxed.errors import UsageError
from pxed.events import Kind
from pxed.mac import Mac
from tests.dhcp_asks import (
    BIOS,
    HTTP,
    IPXE,
    MAC,
    OTHER_SERVER,
    PI,
    PI3,
    PI4,
    SERVER,
    SYSTEM,
    UEFI,
    UUID,
    ask,
    boot,
    discover,
    kinds,
    only,
    policy,
    select,
    to,
    why,
)

# Modes


def test_pxe_only_leaves_systems_to_the_site() -> None:
    assert "site's DHCP server" in why(discover(policy(), SYSTEM))


def test_all_gives_systems_a_plain_lease() -> None:
    ack = boot(policy(Mode.ALL), {**SYSTEM, Opt.CLIENT_ID: b"\xff123"})
    assert (ack.file, ack.siaddr) == (b"", IPv4Address(0))
    assert ack.options[Opt.CLIENT_ID] == b"\xff123"
    assert not {Opt.VENDOR, Opt.VENDOR_CLASS, Opt.ROOT_PATH} & set(ack.options)


def test_the_temporary_lease_comes_back_when_the_system_asks() -> None:
    server = policy()
    boot(server, IPXE)
    outcome = discover(server, SYSTEM, now=30)
    assert kinds(outcome) == [Kind.RELEASE, Kind.IGNORED]
    assert server.leases.of(MAC, 30) is None


def test_a_request_without_option_60_takes_our_offer() -> None:
    server = policy()
    offer = only(discover(server, UEFI))
    ack = only(select(server, offer.yiaddr, {}))
    assert (ack.type, ack.file) == (Type.ACK, b"snponly.efi")


# REQUEST


def test_another_servers_offer_was_taken() -> None:
    server = policy()
    offer = only(discover(server, BIOS))
    outcome = select(server, offer.yiaddr, BIOS, chosen=OTHER_SERVER)
    assert "10.77.0.2" in why(outcome)
    assert server.leases.of(MAC, 0) is None


def test_an_address_of_another_is_refused_aloud() -> None:
    server = policy()
    ack = boot(server, BIOS)
    outcome = select(server, ack.yiaddr, BIOS, mac=Mac("52:54:00:00:00:99"))
    assert only(outcome).type == Type.NAK
    assert to(outcome).kind is To.BROADCAST


def rebooting(ip: str) -> dict[Opt, bytes]:
    return {**SYSTEM, Opt.REQUESTED_IP: IPv4Address(ip).packed}


@pytest.mark.parametrize("ip", ["10.77.0.55", "192.0.2.1"])
def test_pxe_only_never_refuses_a_systems_own_address(ip: str) -> None:
    outcome = policy().handle(encode(ask(Type.REQUEST, rebooting(ip))), 0)
    assert "another DHCP server" in why(outcome)


@pytest.mark.parametrize("ip", ["10.77.0.55", "192.0.2.1"])
def test_all_refuses_what_it_does_not_know(ip: str) -> None:
    outcome = policy(Mode.ALL).handle(encode(ask(Type.REQUEST, rebooting(ip))), 0)
    assert only(outcome).type == Type.NAK


def test_init_reboot_with_our_lease() -> None:
    server = policy(Mode.ALL)
    ip = boot(server, SYSTEM).yiaddr
    outcome = server.handle(encode(ask(Type.REQUEST, rebooting(str(ip)))), 10)
    assert only(outcome).yiaddr == ip


def test_renewal_is_answered_by_unicast() -> None:
    server = policy(Mode.ALL)
    request = ask(Type.REQUEST, SYSTEM)
    request.ciaddr = boot(server, SYSTEM).yiaddr
    outcome = server.handle(encode(request), 300)
    assert to(outcome) == Destination(To.UNICAST, request.ciaddr, 68, MAC)
    lease = server.leases.of(MAC, 300)
    assert lease is not None
    assert lease.expires == 900


def test_an_expired_lease_goes_on_if_it_is_still_free() -> None:
    server = policy(Mode.ALL)
    request = ask(Type.REQUEST, SYSTEM)
    request.ciaddr = boot(server, SYSTEM).yiaddr
    assert only(server.handle(encode(request), 5000)).type == Type.ACK


def test_exhaustion_is_reported() -> None:
    server = policy(last="10.77.0.50")
    boot(server, BIOS)
    outcome = discover(server, BIOS, mac=Mac("52:54:00:00:00:99"))
    assert kinds(outcome) == [Kind.DISCOVER, Kind.POOL_FULL]
    said = {"range": "10.77.0.50-10.77.0.50", "size": 1, "unclaimed": 0, "idle": 1, "free": 0}
    assert outcome.events[1].detail == said


# The rest


def test_decline_quarantines_for_ten_minutes() -> None:
    server = policy(last="10.77.0.50")
    ip = boot(server, BIOS).yiaddr
    options = {Opt.REQUESTED_IP: ip.packed, Opt.SERVER_ID: SERVER.packed}
    outcome = server.handle(encode(ask(Type.DECLINE, options)), 1)
    assert kinds(outcome) == [Kind.DECLINE]
    assert kinds(discover(server, BIOS, now=599))[-1] is Kind.POOL_FULL
    assert only(discover(server, BIOS, now=602)).yiaddr == ip


@pytest.mark.parametrize(("named", "freed"), [(SERVER, True), (OTHER_SERVER, False)])
def test_release_must_name_us(named: IPv4Address, freed: bool) -> None:
    server = policy()
    request = ask(Type.RELEASE, {Opt.SERVER_ID: named.packed})
    request.ciaddr = boot(server, BIOS).yiaddr
    outcome = server.handle(encode(request), 1)
    assert outcome.replies == ()
    assert (server.leases.of(MAC, 1) is None) is freed


def test_inform() -> None:
    request = ask(Type.INFORM, SYSTEM)
    request.ciaddr = IPv4Address("10.77.0.200")
    ack = only(policy(Mode.ALL).handle(encode(request), 0))
    assert (ack.type, ack.yiaddr) == (Type.ACK, IPv4Address(0))
    assert Opt.LEASE_TIME not in ack.options
    why(policy().handle(encode(request), 0))


def test_rubbish_raises_the_declared_error() -> None:
    with pytest.raises(DhcpError):
        policy().handle(b"rubbish", 0)


def test_a_reply_is_not_answered() -> None:
    message = ask(Type.OFFER, {})
    message.op = Op.REPLY
    assert policy().handle(encode(message), 0) == Outcome()


def test_a_pi3_takes_its_offer_by_reading_a_file() -> None:
    server = policy()
    ip = only(discover(server, {**PI, Opt.UUID: b"\0" + b"\x44\x33\x22\x11" * 4}, mac=PI3)).yiaddr
    assert [lease.state for lease in server.leases.export()] == []
    server.taken(PI3, 5)
    assert server.leases.owner(ip, 500) == PI3
    assert server.leases.is_known(PI3)
    server.taken(PI3, 6)  # twice is fine
    server.taken(MAC, 6)  # and one that has no offer


def test_a_mode_that_changes_keeps_the_promises_of_before() -> None:
    """``auto``: a DHCP server has turned up between our OFFER and the REQUEST."""
    server = policy()
    offer = only(discover(server, BIOS))
    server.set_mode(Mode.PROXY)
    assert only(select(server, offer.yiaddr, BIOS)).type == Type.ACK
    renewal = ask(Type.REQUEST, BIOS)
    renewal.ciaddr = offer.yiaddr
    assert only(server.handle(encode(renewal), 100)).type == Type.ACK
    assert only(discover(server, BIOS, now=101, xid=9)).yiaddr == IPv4Address(0)
    release = ask(Type.RELEASE, {Opt.SERVER_ID: SERVER.packed})
    release.ciaddr = offer.yiaddr
    assert kinds(server.handle(encode(release), 102)) == [Kind.RELEASE]


def test_a_proxy_notes_whose_address_firmware_takes() -> None:
    server = policy(Mode.PROXY)
    discover(server, UEFI)
    outcome = select(server, IPv4Address("10.77.0.100"), UEFI, chosen=OTHER_SERVER)
    assert outcome.replies == ()
    (event,) = outcome.events
    assert (event.kind, event.detail["server"]) == (Kind.REQUEST, "10.77.0.2")
    assert event.detail["ip"] == "10.77.0.100"


# Destinations


def test_to_the_mac_where_no_address_is_known_yet() -> None:
    outcome = discover(policy(), BIOS)
    assert to(outcome) == Destination(To.LINK, only(outcome).yiaddr, 68, MAC)


def test_broadcast_flag() -> None:
    request = ask(Type.DISCOVER, BIOS)
    request.flags = BROADCAST_FLAG
    assert to(policy().handle(encode(request), 0)).kind is To.BROADCAST


def test_relay_gets_its_option_back_last() -> None:
    request = ask(Type.DISCOVER, {Opt.RELAY: b"\1\4port", **BIOS})
    request.giaddr = IPv4Address("10.77.0.250")
    outcome = policy().handle(encode(request), 0)
    assert to(outcome) == Destination(To.RELAY, request.giaddr, 67, MAC)
    assert list(only(outcome).options.items())[-1] == (Opt.RELAY, b"\1\4port")


def test_a_nak_through_a_relay_is_to_be_broadcast() -> None:
    """RFC 2131 section 4.3.2: the client's address is wrong, so the relay must not use it."""
    request = ask(Type.REQUEST, {**rebooting("192.0.2.1"), Opt.RELAY: b"\1\4port"})
    request.giaddr = IPv4Address("10.77.0.250")
    outcome = policy(Mode.ALL).handle(encode(request), 0)
    nak = only(outcome)
    assert (nak.type, nak.flags, nak.yiaddr) == (Type.NAK, BROADCAST_FLAG, IPv4Address(0))
    assert to(outcome) == Destination(To.RELAY, request.giaddr, 67, MAC)
    assert list(nak.options)[-1] == Opt.RELAY


def test_relay_of_another_subnet() -> None:
    request = ask(Type.DISCOVER, BIOS)
    request.giaddr = IPv4Address("10.88.0.1")
    assert "10.88.0.1" in why(policy().handle(encode(request), 0))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("relay", ["0.0.0.0", "10.77.0.250"])
def test_what_a_router_brings_is_no_word_of_a_machine(mode: Mode, relay: str) -> None:
    """Anybody anywhere can send it, with any machine's address inside: nothing comes of it."""
    request = ask(Type.DISCOVER, BIOS)
    request.giaddr = IPv4Address(relay)
    outcome = policy(mode).handle(encode(request), 0, IPv4Address("192.0.2.9"))
    assert (outcome.replies, outcome.events) == ((), ())
    near = policy(mode).handle(encode(request), 0, IPv4Address("10.77.0.250"))
    assert near.events


@pytest.mark.parametrize("mode", list(Mode))
def test_what_was_relayed_from_elsewhere_says_so(mode: Mode) -> None:
    request = ask(Type.DISCOVER, BIOS)
    request.giaddr = IPv4Address("10.88.0.1")
    outcome = policy(mode).handle(encode(request), 0, request.giaddr)
    assert outcome.events[0].detail["relayed"] is True
    assert "relayed" not in discover(policy(mode), BIOS).events[0].detail


# Proxy


def test_proxy_offers_no_address() -> None:
    outcome = discover(policy(Mode.PROXY), BIOS)
    offer = only(outcome)
    assert to(outcome).kind is To.BROADCAST
    assert (offer.yiaddr, offer.file) == (IPv4Address(0), b"undionly.kpxe")
    assert offer.options[Opt.VENDOR] == b"\x06\x01\x08\xff"
    assert Opt.LEASE_TIME not in offer.options


@pytest.mark.parametrize("options", [BIOS, UEFI], ids=["bios", "uefi"])
def test_what_every_proxy_offer_has(options: dict[Opt, bytes]) -> None:
    offer = only(discover(policy(Mode.PROXY), options))
    assert (offer.siaddr, offer.sname) == (SERVER, b"10.77.0.1")
    assert offer.address(Opt.SERVER_ID) == SERVER
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"
    assert offer.options[Opt.UUID] == UUID


def test_proxy_and_uefi_http() -> None:
    offer = only(discover(policy(Mode.PROXY), HTTP))
    assert (offer.yiaddr, offer.file) == (IPv4Address(0), b"http://10.77.0.1/snponly.efi")
    assert offer.options[Opt.VENDOR_CLASS] == b"HTTPClient"
    assert Opt.VENDOR not in offer.options


def test_proxy_and_a_pi() -> None:
    offer = only(discover(policy(Mode.PROXY), {**PI, Opt.UUID: b"\0RPi4" + bytes(12)}, mac=PI4))
    assert offer.yiaddr == IPv4Address(0)
    assert b"Raspberry Pi Boot" in offer.options[Opt.VENDOR]
    assert offer.options[Opt.TFTP_SERVER] == b"10.77.0.1"


def test_proxy_sends_uefi_to_port_4011() -> None:
    offer = only(discover(policy(Mode.PROXY), UEFI))
    assert Opt.VENDOR not in offer.options
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"


def test_proxy_gives_ipxe_a_script() -> None:
    offer = only(discover(policy(Mode.PROXY), IPXE))
    assert (offer.file, Opt.ROOT_PATH in offer.options) == (b"boot.ipxe", False)
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"


def test_proxy_leaves_requests_to_the_dhcp_server() -> None:
    outcome = select(policy(Mode.PROXY), IPv4Address("10.77.0.99"), BIOS)
    assert outcome.replies == ()


def test_port_4011_answers_the_source() -> None:
    source = (IPv4Address("10.77.0.99"), 4011)
    request = ask(Type.REQUEST, UEFI)
    request.ciaddr = source[0]
    outcome = policy(Mode.PROXY).handle_boot(encode(request), 0, source)
    assert to(outcome) == Destination(To.UNICAST, *source, MAC)
    ack = only(outcome)
    assert (ack.type, ack.file, ack.siaddr) == (Type.ACK, b"snponly.efi", SERVER)
    assert ack.options[Opt.UUID] == UUID


def test_port_4011_returns_the_boot_item() -> None:
    request = ask(Type.REQUEST, {**BIOS, Opt.VENDOR: b"\x47\x04\x80\0\0\0\xff"})
    outcome = policy(Mode.PROXY).handle_boot(encode(request), 0, (IPv4Address("10.77.0.9"), 68))
    assert only(outcome).options[Opt.VENDOR] == b"\x47\x04\x80\0\0\0\xff"


def test_port_4011_ignores_others() -> None:
    source = (IPv4Address("10.77.0.9"), 68)
    for message in (ask(Type.DISCOVER, UEFI), ask(Type.REQUEST, SYSTEM)):
        why(policy(Mode.PROXY).handle_boot(encode(message), 0, source))


# The server's own address


def test_the_server_follows_its_address() -> None:
    server = policy()
    boot(server, BIOS)
    assert server.update_server(IPv4Address("10.99.0.7"), 24)
    offer = only(discover(server, BIOS, now=1))
    assert offer.options[Opt.SERVER_ID] == IPv4Address("10.99.0.7").packed
    assert offer.yiaddr in server.settings.network
    assert not server.update_server(IPv4Address("10.99.0.7"), 24)


def test_the_server_never_offers_its_own_address() -> None:
    server = policy(last="10.77.0.51")
    server.update_server(IPv4Address("10.77.0.50"), 24)
    wants = {**BIOS, Opt.REQUESTED_IP: IPv4Address("10.77.0.50").packed}
    assert only(discover(server, wants)).yiaddr == IPv4Address("10.77.0.51")


def test_a_new_routers_address_is_nobody_elses() -> None:
    """As a reload brings it; the one of before is free then."""
    server, router = policy(last="10.77.0.51"), IPv4Address("10.77.0.50")
    wants = {**BIOS, Opt.REQUESTED_IP: router.packed, Opt.PARAMETERS: bytes((Opt.ROUTER,))}
    server.configure(router, (), 600)
    offer = only(discover(server, wants))
    assert offer.yiaddr == IPv4Address("10.77.0.51")
    assert offer.options[Opt.ROUTER] == router.packed
    server.configure(None, (), 600)
    assert router in server.leases


@pytest.mark.parametrize(
    ("who", "late"), [(UEFI, True), (HTTP, True), (BIOS, False), (IPXE, False)]
)
def test_uefi_hears_our_offer_last_beside_another_server(who: dict[Opt, bytes], late: bool) -> None:
    """And at once where there is none."""
    server = policy()
    (at_once,) = discover(server, who).replies
    server.beside = True
    (reply,) = discover(server, who).replies
    assert (at_once.delay, reply.delay) == (0, 1.0 if late else 0)


def test_a_probe_is_asked_for_once() -> None:
    server = policy()
    first = discover(server, BIOS)
    assert first.probe == only(first).yiaddr
    assert discover(server, BIOS, now=1).probe is None
    boot(server, BIOS, now=2)
    assert discover(server, BIOS, now=5000).probe is None


def test_an_address_that_was_looked_at_needs_no_probe() -> None:
    server = policy()
    server.leases.vouch(IPv4Address("10.77.0.52"), until=10)
    first = discover(server, BIOS)
    assert first.probe is None
    assert only(first).yiaddr == IPv4Address("10.77.0.52")
    assert discover(server, BIOS, now=5000).probe is not None


def test_a_conflict_moves_to_the_next_address() -> None:
    server = policy()
    first = discover(server, BIOS)
    assert first.probe is not None
    assert server.conflict(first.probe, Mac("52:54:00:00:00:99"), 0)
    assert only(discover(server, BIOS)).yiaddr != first.probe


def test_a_flood_of_macs_keeps_the_memory_bounded() -> None:
    server = policy(Mode.PROXY)
    for n in range(5000):
        mac = Mac(f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}")
        discover(server, BIOS, mac=mac)
    assert len(server._seen) <= 4096


@pytest.mark.parametrize("change", [{"prefixlen": 31}, {"lease": 5}])
def test_settings_that_make_no_sense(change: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        replace(policy().settings, **change)  # type: ignore[arg-type]
