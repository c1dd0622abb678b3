"""Which firmware gets which answer."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from pxed.dhcp.codec import Opt, decode
from pxed.dhcp.leases import HOLD
from pxed.dhcp.policy import CHAIN_SECONDS, CHAINS, CHAINS_SECONDS
from pxed.dhcp.replies import Mode
from pxed.events import Kind
from pxed.mac import Mac
from tests.dhcp_asks import (
    BIOS,
    HTTP,
    IPXE,
    OLD_IPXE,
    PI,
    PI3,
    PI4,
    SERVER,
    SYSTEM,
    UEFI,
    UUID,
    boot,
    discover,
    kinds,
    only,
    policy,
    select,
    why,
)


@pytest.mark.parametrize(("options", "file"), [(BIOS, b"undionly.kpxe"), (UEFI, b"snponly.efi")])
def test_pxe_gets_a_full_lease_and_its_file(options: dict[Opt, bytes], file: bytes) -> None:
    offer = only(discover(policy(), options))
    assert offer.yiaddr in policy().settings.network
    assert (offer.siaddr, offer.sname, offer.file) == (SERVER, b"10.77.0.1", file)
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"
    assert offer.options[Opt.VENDOR] == b"\x06\x01\x08\xff"
    assert offer.options[Opt.UUID] == UUID
    assert offer.options[Opt.SERVER_ID] == SERVER.packed
    assert offer.options[Opt.LEASE_TIME] == (600).to_bytes(4, "big")
    assert offer.options[Opt.SUBNET_MASK] == b"\xff\xff\xff\0"


@pytest.mark.parametrize("lacks", [Opt.UUID, Opt.NDI, Opt.ARCH])
def test_a_rom_that_leaves_something_out_boots_too(lacks: Opt) -> None:
    said = {**BIOS, Opt.NDI: b"\1\2\1"}
    del said[lacks]
    ack = boot(policy(), said)
    assert ack.file == b"undionly.kpxe"
    assert (Opt.UUID in ack.options) == (lacks is not Opt.UUID)


def test_offer_and_ack_are_alike() -> None:
    server = policy()
    offer = only(discover(server, UEFI))
    ack = only(select(server, offer.yiaddr, UEFI))
    assert (ack.file, ack.siaddr, ack.yiaddr) == (offer.file, offer.siaddr, offer.yiaddr)
    offer.options[Opt.TYPE] = ack.options[Opt.TYPE]
    assert ack.options == offer.options


def test_ipxe_gets_the_root_path_and_no_file() -> None:
    ack = boot(policy(), IPXE)
    assert (ack.options[Opt.ROOT_PATH], ack.file) == (b"aoe:e16.0", b"")
    assert Opt.VENDOR_CLASS not in ack.options
    assert ack.options[Opt.IPXE] == b"\x01\x01\x01\xb0\x01\x01"


def test_ipxe_without_aoe_loads_ours_once_and_never_in_a_loop() -> None:
    server = policy()
    assert boot(server, OLD_IPXE, xid=1).file == b"undionly.kpxe"
    assert "no AoE support" in why(discover(server, OLD_IPXE, now=5, xid=2))
    assert boot(server, OLD_IPXE, now=CHAIN_SECONDS + 6, xid=3).file == b"undionly.kpxe"


def test_a_slow_loop_ends_too() -> None:
    """Ours takes longer to come back than one remembers that it was loaded."""
    server, loaded = policy(), 0
    for xid, now in enumerate(range(0, 500, 70), 1):
        if discover(server, OLD_IPXE, now=now, xid=xid).replies:
            loaded += 1
            boot(server, OLD_IPXE, now=now, xid=xid)
    assert loaded == CHAINS
    assert "no AoE support" in why(discover(server, OLD_IPXE, now=500, xid=98))
    later = 140 + CHAINS_SECONDS + 1
    assert boot(server, OLD_IPXE, now=later, xid=99).file == b"undionly.kpxe"


def test_reboots_that_succeed_are_no_loop() -> None:
    """An old iPXE in the card loads ours at each boot, which then boots."""
    server = policy()
    for number in range(10):
        now = number * 70.0
        assert boot(server, OLD_IPXE, now=now, xid=2 * number + 1).file == b"undionly.kpxe"
        assert boot(server, IPXE, now=now + 5, xid=2 * number + 2).options[Opt.ROOT_PATH]


@pytest.mark.parametrize("firmware", [IPXE, OLD_IPXE], ids=["ours", "old"])
def test_one_that_ignores_its_script_gets_nothing_else(firmware: dict[Opt, bytes]) -> None:
    """Proxy mode: whatever it does with the answers, it loads ours so often and no more."""
    server, files = policy(Mode.PROXY), []
    for xid in range(1, 41):
        files += [decode(r.message).file for r in discover(
            server, firmware, now=xid * 10.0, xid=xid).replies]  # fmt: skip
    if firmware is IPXE:
        assert set(files) == {b"boot.ipxe"}
    else:
        assert files == [b"undionly.kpxe"] * CHAINS


def test_a_repeated_question_is_no_loop() -> None:
    server = policy()
    boot(server, OLD_IPXE)
    assert only(discover(server, OLD_IPXE, now=2)).file == b"undionly.kpxe"


def test_a_repeated_request_gets_the_same_ack() -> None:
    server = policy()
    ack = boot(server, OLD_IPXE)
    assert only(select(server, ack.yiaddr, OLD_IPXE, now=1)) == ack


@pytest.mark.parametrize("first", [BIOS, OLD_IPXE], ids=["pxe", "ipxe"])
def test_the_chain_ends_in_our_ipxe(first: dict[Opt, bytes]) -> None:
    server = policy()
    boot(server, first, xid=1)
    assert boot(server, IPXE, now=3, xid=2).options[Opt.ROOT_PATH] == b"aoe:e16.0"


def test_an_ipxe_of_ours_that_cannot_is_not_loaded_again() -> None:
    server = policy()
    boot(server, BIOS, xid=1)
    assert not discover(server, OLD_IPXE, now=3, xid=2).replies


def test_one_machine_keeps_its_address_through_the_chain() -> None:
    server = policy()
    assert boot(server, BIOS).yiaddr == boot(server, IPXE, now=5).yiaddr


def test_rom_ipxe_and_system_are_one_machine() -> None:
    """Three client identifiers, one address: the key is the MAC."""
    server = policy(Mode.ALL)
    rom = boot(server, {**UEFI, Opt.CLIENT_ID: UUID}, xid=1)
    ipxe = boot(server, {**IPXE, Opt.CLIENT_ID: b"\1" + bytes(6)}, xid=2, now=5)
    duid = {**SYSTEM, Opt.CLIENT_ID: b"\xff\0\0\0\1\0\4" + bytes(16)}
    system = boot(server, duid, xid=3, now=30)
    assert rom.yiaddr == ipxe.yiaddr == system.yiaddr


def test_two_machines_with_one_xid_are_two() -> None:
    """A Pi 3's is always the same."""
    server, uuid = policy(), b"\0" + b"\x44\x33\x22\x11" * 4
    other = Mac("b8:27:eb:11:22:44")
    first = only(discover(server, {**PI, Opt.UUID: uuid}, mac=PI3, xid=0x26F30339))
    second = only(discover(server, {**PI, Opt.UUID: uuid}, mac=other, xid=0x26F30339))
    assert first.yiaddr != second.yiaddr


def test_uefi_http() -> None:
    offer = only(discover(policy(), HTTP))
    assert offer.options[Opt.VENDOR_CLASS] == b"HTTPClient"
    assert offer.file == b"http://10.77.0.1/snponly.efi"
    assert Opt.VENDOR not in offer.options


def test_pi4() -> None:
    uuid = b"\0RPi4" + bytes(12)
    offer = only(discover(policy(), {**PI, Opt.UUID: uuid}, mac=PI4))
    expected = b"\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff"
    assert offer.options[Opt.VENDOR] == expected
    assert offer.options[Opt.TFTP_SERVER] == b"10.77.0.1"
    assert offer.options[Opt.VENDOR_CLASS] == b"PXEClient"
    assert (offer.siaddr, offer.options[Opt.UUID]) == (SERVER, uuid)


def test_pi3_is_answered_late_and_keeps_its_offer() -> None:
    server = policy()
    uuid = b"\0" + b"\x44\x33\x22\x11" * 4
    outcome = discover(server, {**PI, Opt.UUID: uuid}, mac=PI3)
    assert outcome.replies[0].delay == 2.0
    assert b"Raspberry Pi Boot   " in only(outcome).options[Opt.VENDOR]
    assert server.leases.owner(only(outcome).yiaddr, HOLD + 40) == PI3


def test_no_plan_no_answer() -> None:
    outcome = discover(policy(), BIOS, mac=Mac("00:00:5e:00:00:01"))
    assert why(outcome) == "nothing is planned for this machine"


def test_only_what_is_asked_for() -> None:
    plain = only(discover(policy(), BIOS))
    wants = {**BIOS, Opt.PARAMETERS: bytes((66, 67, 58, 59, 28))}
    full = only(discover(policy(), wants))
    assert Opt.TFTP_SERVER not in plain.options
    assert full.options[Opt.TFTP_SERVER] == b"10.77.0.1"
    assert full.options[Opt.BOOT_FILE] == b"undionly.kpxe"
    assert full.options[Opt.T1] == (300).to_bytes(4, "big")
    assert full.options[Opt.BROADCAST] == IPv4Address("10.77.0.255").packed


def test_more_name_servers_than_fit_do_not_keep_firmware_from_booting() -> None:
    server = policy()
    dns = tuple(IPv4Address(f"10.77.1.{n}") for n in range(1, 101))
    server.settings = replace(server.settings, dns=dns)
    offer = only(discover(server, {**UEFI, Opt.PARAMETERS: bytes(range(1, 129))}))
    assert (offer.file, offer.options[Opt.UUID]) == (b"snponly.efi", UUID)
    assert offer.options[Opt.DNS] == b"".join(ip.packed for ip in dns[:3])
    whole = only(discover(server, {**UEFI, Opt.MAX_SIZE: b"\x05\xdc"}, now=1))
    assert len(whole.options[Opt.DNS]) == 400


def test_events_of_a_boot() -> None:
    server = policy()
    first = discover(server, UEFI)
    second = select(server, only(first).yiaddr, UEFI)
    assert kinds(first) == [Kind.DISCOVER, Kind.OFFER]
    assert kinds(second) == [Kind.REQUEST, Kind.ACK]
    assert first.events[0].detail == {"firmware": "pxe", "arch": 7}
    ip = str(only(first).yiaddr)
    assert second.events[1].detail == {"ip": ip, "boot_file": "snponly.efi", "root_path": ""}
