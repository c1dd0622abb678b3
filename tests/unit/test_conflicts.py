"""What rivals mean for our clients: one event for each, in words, and one when it is gone."""

from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from pxed.conflicts import GONE, TFTP_LOOKS, Conflicts, What
from pxed.dhcp.replies import Mode
from pxed.dhcp.rival import Rival
from pxed.events import Event, Kind
from pxed.mac import Mac

MAC = Mac("52:54:00:00:00:02")
SITE = Rival(IPv4Address("10.77.0.2"), MAC, leases=True, boots=False, address="10.77.0.100")
BOOTER = replace(SITE, leases=False, boots=True, address="", file="pxelinux.0")


def conflicts(mode: Mode = Mode.PXE_ONLY) -> Conflicts:
    low, high = IPv4Address("10.77.0.128"), IPv4Address("10.77.0.254")
    return Conflicts(mode, lambda ip: low <= ip <= high)


def only(events: list[Event]) -> Event:
    (event,) = events
    return event


def test_the_sites_server_is_no_trouble_beside_pxe_only() -> None:
    event = only(conflicts().dhcp(SITE, 1.0))
    assert event.kind is Kind.RIVAL
    assert event.detail["rival"] == MAC
    assert event.detail["ip"] == "10.77.0.2"
    assert event.detail["offer"] == "address 10.77.0.100"
    assert event.detail["serious"] is False


def test_a_proxy_with_the_chain_for_secure_boot_needs_to_be_its_next_server() -> None:
    for signed in (True, False):
        watch = Conflicts(Mode.PROXY, lambda _: False, signed=partial(bool, signed))
        event = only(watch.dhcp(SITE, 1.0))
        assert ("next-server" in str(event.detail["consequence"])) is signed
        assert event.detail["serious"] is False


def test_it_is_told_once() -> None:
    watch = conflicts()
    watch.dhcp(SITE, 1.0)
    assert watch.dhcp(SITE, 2.0) == []
    assert watch.dhcp(replace(SITE, address="10.77.0.101"), 3.0) == []


def test_it_is_told_again_when_it_gives_out_our_addresses() -> None:
    watch = conflicts()
    watch.dhcp(SITE, 1.0)
    event = only(watch.dhcp(replace(SITE, address="10.77.0.130"), 2.0))
    assert event.detail["serious"] is True
    assert "10.77.0.130 is in our range too" in str(event.detail["consequence"])
    assert watch.dhcp(replace(SITE, address="10.77.0.131"), 3.0) == []


def test_a_server_beside_mode_all_is_serious() -> None:
    event = only(conflicts(Mode.ALL).dhcp(SITE, 1.0))
    assert event.detail["serious"] is True
    assert "auto" in str(event.detail["consequence"])


def test_proxy_mode_needs_one() -> None:
    watch = conflicts(Mode.PROXY)
    alarm = only(watch.swept(1.0))
    assert alarm.kind is Kind.ALARM
    assert "no DHCP server answers" in str(alarm.detail["text"])
    assert watch.swept(2.0) == []
    assert only(watch.dhcp(SITE, 3.0)).detail["serious"] is False
    assert watch.swept(4.0) == []


def test_another_boot_server_is_serious_in_every_mode() -> None:
    for mode in Mode:
        event = only(conflicts(mode).dhcp(BOOTER, 1.0))
        assert event.detail["what"] == What.BOOT
        assert event.detail["offer"] == "boot file pxelinux.0"
        assert event.detail["serious"] is True
        assert "boot options" in str(event.detail["consequence"])


def test_one_that_does_both_is_two_findings() -> None:
    both = replace(BOOTER, leases=True, address="10.77.0.100")
    assert [e.detail["what"] for e in conflicts().dhcp(both, 1.0)] == [What.DHCP, What.BOOT]


def test_a_target_at_our_address() -> None:
    event = only(conflicts().aoe(MAC, {(16, 1), (16, 0)}, 1.0))
    assert event.detail["offer"] == "e16.0, e16.1"
    assert "read their disks from it" in str(event.detail["consequence"])


def test_one_that_vanishes_is_noted_once() -> None:
    watch = conflicts()
    watch.dhcp(SITE, 1.0)
    watch.aoe(MAC, {(16, 0)}, 100.0)
    assert watch.swept(1.0 + GONE) == []
    gone = only(watch.swept(2.0 + GONE))
    assert (gone.kind, gone.detail["what"]) == (Kind.RIVAL_GONE, What.DHCP)
    assert watch.swept(3.0 + GONE) == []
    assert [finding.what for finding in watch] == [What.AOE]
    assert only(watch.dhcp(SITE, 4.0 + GONE)).kind is Kind.RIVAL


def test_the_one_to_name_is_a_boot_server() -> None:
    watch = conflicts()
    assert watch.booter() is None
    watch.dhcp(SITE, 1.0)
    first = watch.booter()
    assert first is not None
    assert first.what is What.DHCP
    watch.dhcp(BOOTER, 2.0)
    second = watch.booter()
    assert second is not None
    assert second.offer == "boot file pxelinux.0"


def test_a_tftp_server_is_no_trouble_by_itself() -> None:
    event = only(conflicts().tftp(MAC, SITE.ip, 1.0))
    assert (event.detail["ip"], event.detail["serious"]) == ("10.77.0.2", False)
    assert "none by itself" in str(event.detail["consequence"])


def test_a_tftp_server_that_is_asked_less_often_stays_longer() -> None:
    watch = conflicts()
    watch.tftp(MAC, SITE.ip, 1.0)
    assert watch.swept(2.0 + GONE) == []
    assert only(watch.swept(2.0 + GONE * TFTP_LOOKS)).kind is Kind.RIVAL_GONE


def test_a_flood_of_rivals_is_bounded() -> None:
    watch = conflicts()
    for number in range(10_000):
        mac = Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        watch.dhcp(replace(SITE, mac=mac), 1.0)
    assert len(list(watch)) <= 256
