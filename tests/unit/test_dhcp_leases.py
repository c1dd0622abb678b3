"""Addresses: held, bound, kept, given up, and never lost to a flood."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from pxed.dhcp.lease import Lease, State, carve
from pxed.dhcp.leases import CLAIM, HOLD, IDLE, QUARANTINE, Leases
from pxed.dhcp.pressure import AGAIN, MANY, PRESSURE
from pxed.errors import UsageError
from pxed.mac import Mac, mac_text

FIRST, LAST = IPv4Address("10.0.0.10"), IPv4Address("10.0.0.19")
A, B = Mac("52:54:00:00:00:0a"), Mac("52:54:00:00:00:0b")


def stranger(n: int) -> Mac:
    return mac_text(b"\x02\xee" + n.to_bytes(4, "big"))


@pytest.fixture
def leases() -> Leases:
    return Leases(FIRST, LAST)


def bound(leases: Leases, mac: Mac, now: float = 0, seconds: float = 600) -> IPv4Address:
    offer = leases.offer(mac, now)
    assert offer is not None
    lease = leases.bind(mac, offer.ip, now, seconds)
    assert lease is not None
    return lease.ip


def test_two_machines_two_addresses(leases: Leases) -> None:
    assert bound(leases, A) != bound(leases, B)


def test_repeated_offers_are_the_same(leases: Leases) -> None:
    first = leases.offer(A, 0)
    again = leases.offer(A, 1)
    assert first is not None
    assert again is not None
    assert first.ip == again.ip
    assert again.expires == 1 + HOLD


def test_unclaimed_offer_expires(leases: Leases) -> None:
    offer = leases.offer(A, 0)
    assert offer is not None
    assert leases.owner(offer.ip, HOLD - 0.1) == A
    assert leases.owner(offer.ip, HOLD) is None


def test_an_offered_address_is_not_offered_twice(leases: Leases) -> None:
    offer = leases.offer(A, 0)
    assert offer is not None
    other = leases.offer(B, 0, wanted=offer.ip)
    assert other is not None
    assert other.ip != offer.ip


def test_wanted_address_if_free(leases: Leases) -> None:
    offer = leases.offer(A, 0, wanted=IPv4Address("10.0.0.17"))
    assert offer is not None
    assert offer.ip == IPv4Address("10.0.0.17")


def test_an_address_of_another_cannot_be_bound(leases: Leases) -> None:
    assert leases.bind(B, bound(leases, A), 1, 600) is None


def test_outside_the_pool_cannot_be_bound(leases: Leases) -> None:
    assert leases.bind(A, IPv4Address("10.0.0.99"), 0, 600) is None


def test_stable_after_expiry_and_release(leases: Leases) -> None:
    ip = bound(leases, A)
    assert leases.of(A, 600) is None
    assert bound(leases, A, 700) == ip
    assert leases.release(A, ip, 701)
    assert leases.of(A, 702) is None
    assert bound(leases, A, 703) == ip


def test_release_of_another_is_refused(leases: Leases) -> None:
    assert not leases.release(B, bound(leases, A), 1)


def test_decline_quarantines(leases: Leases) -> None:
    ip = bound(leases, A)
    assert leases.decline(A, ip, 1)
    assert bound(leases, A, 2) != ip
    assert leases.offer(B, 2, wanted=ip) != ip
    assert leases.bind(B, ip, 3, 600) is None
    assert leases.bind(B, ip, 1 + QUARANTINE, 600) is not None


def test_decline_of_another_is_refused(leases: Leases) -> None:
    assert not leases.decline(B, bound(leases, A), 1)


def test_exhaustion(leases: Leases) -> None:
    for n in range(10):
        bound(leases, stranger(n))
    assert leases.offer(A, 1) is None


def test_the_longest_absent_gives_way(leases: Leases) -> None:
    gone = bound(leases, A, 0, 10)
    for n in range(9):
        bound(leases, stranger(n), 1)
    assert bound(leases, B, 20) == gone
    assert not leases.is_known(A)


def test_a_flood_leaves_known_machines_their_addresses(leases: Leases) -> None:
    ip = bound(leases, A, 0, 10)
    for n in range(5000):
        leases.offer(stranger(n), 100 + n / 1000)
    assert bound(leases, A, 106) == ip


def test_a_room_of_new_machines_switched_on_at_once_all_get_an_offer() -> None:
    leases = Leases(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.200"))
    offers = {leases.offer(stranger(n), 0) for n in range(200)}
    assert None not in offers
    assert len(offers) == 200


def flooded(leases: Leases, begin: float, end: float, rate: int = 100) -> float:
    """As many made-up addresses a second, each asking once; the time of the last."""
    number = int(begin * rate)
    while number < end * rate:
        leases.offer(stranger(number), number / rate)
        number += 1
    return number / rate


def test_a_flood_does_not_keep_a_new_machine_out(leases: Leases) -> None:
    now = flooded(leases, 0, 30)
    assert leases.offer(A, now) is None  # it is as unknown as the others
    now = flooded(leases, now, now + 4)  # and asks again, as firmware does
    offer = leases.offer(A, now)
    assert offer is not None
    now = flooded(leases, now, now + 2)
    assert leases.bind(A, offer.ip, now, 600) is not None
    assert leases.unclaimed <= 3


def test_while_the_pool_is_short_single_strangers_are_answered_at_once(leases: Leases) -> None:
    now = flooded(leases, 0, 20)
    assert leases.offer(A, now + HOLD) is not None


def test_an_offer_has_its_time_to_be_claimed(leases: Leases) -> None:
    """Before that the offers of a room are not taken back for others that wait."""
    for n in range(10):
        leases.offer(stranger(n), 0)
    assert leases.offer(A, 0.1) is None
    assert leases.offer(A, CLAIM - 0.1) is None
    bound(leases, stranger(9), 3)
    offer = leases.offer(A, CLAIM)
    assert offer is not None
    assert leases.of(stranger(0), CLAIM) is None
    assert leases.of(stranger(9), CLAIM) is not None


def test_offers_of_known_machines_and_of_slow_ones_are_not_taken_back() -> None:
    leases = Leases(FIRST, FIRST + 1)
    leases.release(A, bound(leases, A), 1)
    leases.offer(A, 2)
    leases.offer(stranger(0), 2, hold=60)  # a Raspberry Pi 3's
    assert leases.offer(B, 3) is None
    assert leases.offer(B, 8) is None


def test_a_repetition_within_a_moment_is_no_second_question(leases: Leases) -> None:
    now = flooded(leases, 0, 15)
    assert leases.offer(A, now) is None
    assert leases.offer(A, now + AGAIN / 2) is None
    assert leases.offer(A, now + AGAIN) is not None


def test_when_the_flood_is_over_strangers_are_answered_at_once(leases: Leases) -> None:
    end = flooded(leases, 0, 20) + PRESSURE
    assert leases.offer(A, end) is not None
    assert leases.unclaimed == 1


@pytest.mark.parametrize("machines", [30, 500, 3000])
def test_the_same_made_up_addresses_again_and_again_do_not_keep_a_new_machine_out(
    leases: Leases, machines: int
) -> None:
    """They ask more often than firmware does; it asks at 0 and 4 s, and needs no luck."""
    now = 0.0
    for _ in range(2 * MANY):
        for number in range(machines):
            leases.offer(stranger(number), now + number / machines)
        now += 1
    assert leases.offer(A, now) is None
    for turn in range(4):
        for number in range(machines):
            leases.offer(stranger(number), now + turn + number / machines)
    offer = leases.offer(A, now + 4)
    assert offer is not None
    assert leases.bind(A, offer.ip, now + 5, 600) is not None


def test_who_asked_too_often_is_not_shut_out(leases: Leases) -> None:
    """A machine that a flood kept from an address has it when the pool is not that short."""
    taking(leases, 0, 1, rate=10)
    for now in range(1, 2 * MANY):
        leases.offer(A, now)
    assert leases._pressure.crowds(A)
    assert leases.of(A, now) is not None  # in place of one that was idle


def test_a_system_that_answers_at_its_address_is_not_idle(leases: Leases) -> None:
    ip, other = bound(leases, A), bound(leases, B)
    assert sorted(leases.to_look_at(9)) == sorted((ip, other))
    leases.answers(B, ip, 1)  # somebody else's word
    leases.answers(A, FIRST + 9, 1)
    assert leases.idle == 2
    leases.answers(A, ip, 1)
    assert leases.idle == 1
    assert leases.to_look_at(9) == [other]


def test_idle_leases_are_looked_at_in_turn() -> None:
    leases = Leases(FIRST, FIRST + 9)
    ips = {bound(leases, stranger(n)) for n in range(10)}
    seen = {ip for _ in range(4) for ip in leases.to_look_at(3)}
    assert seen == ips


def test_who_asked_in_a_flood_is_remembered_within_bounds(leases: Leases) -> None:
    flooded(leases, 0, 40, rate=1000)
    assert len(leases._pressure) <= 1 << 14


def taking(leases: Leases, begin: float, end: float, rate: int = 100) -> float:
    """The same, and each takes what it is offered."""
    for number in range(int(begin * rate), int(end * rate)):
        if (offer := leases.offer(stranger(number), number / rate)) is not None:
            leases.bind(stranger(number), offer.ip, number / rate, 600)
    return end


def test_idle_leases_go_to_a_new_machine_when_the_pool_is_short(leases: Leases) -> None:
    """It asks at 4, 12 and 28 s, as firmware does."""
    now = taking(leases, 0, 10)
    assert leases.idle == leases.size
    found = [leases.offer(A, now)]
    for end in (14, 22, 38):
        now = taking(leases, now, end)
        found.append(leases.offer(A, now))
    assert found[0] is found[1] is None
    assert found[-1] is not None
    assert leases.bind(A, found[-1].ip, now, 600) is not None


def test_a_lease_that_is_used_is_nobody_elses(leases: Leases) -> None:
    ip = bound(leases, A)
    leases.used(A, 1)
    now = taking(leases, 2, 100)
    assert leases.owner(ip, now) == A
    assert leases.idle == leases.size - 1


def test_so_is_one_that_is_renewed(leases: Leases) -> None:
    ip = bound(leases, A)
    assert leases.bind(A, ip, IDLE - 1, 600, renews=True) is not None
    assert leases.idle == 1
    assert leases.bind(A, ip, IDLE, 600, renews=True) is not None
    assert leases.idle == 0


def test_an_idle_lease_is_left_alone_while_there_are_others(leases: Leases) -> None:
    ip = bound(leases, A)
    for n in range(9):
        bound(leases, stranger(n), 500)
    assert leases.owner(ip, 501) == A


def test_a_repetition_does_not_make_an_idle_lease_younger(leases: Leases) -> None:
    ip = bound(leases, A)
    for n in range(9):
        bound(leases, stranger(n), 1)
    bound(leases, A, IDLE)
    offer = leases.offer(B, IDLE)
    assert offer is not None
    assert offer.ip == ip


def known(leases: Leases, count: int) -> dict[Mac, IPv4Address]:
    """So many machines that were here, and are switched off."""
    homes = {}
    for number in range(count):
        mac = mac_text(b"\x52\x54\0\0\1" + bytes((number,)))
        homes[mac] = bound(leases, mac)
        leases.used(mac, 0)
        leases.release(mac, homes[mac], 1)
    return homes


def test_known_machines_find_their_addresses_after_a_flood_that_took_all() -> None:
    leases = Leases(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.40"))
    homes = known(leases, 40)
    now = taking(leases, 2, 60)
    assert leases.idle == 10  # a quarter of them, for a while
    assert {mac: bound(leases, mac, now) for mac in homes} == homes


def test_a_new_room_in_a_pool_that_an_old_one_has_filled() -> None:
    leases = Leases(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.40"))
    known(leases, 40)
    macs = [stranger(number) for number in range(40)]
    for now in (10, 14, 22, 38):  # they go on at once, so there is room for the others
        for mac in macs:
            if leases.of(mac, now) is None and (offer := leases.offer(mac, now)) is not None:
                leases.bind(mac, offer.ip, now, 600)
        for mac in macs:
            leases.used(mac, now + 1)
    assert len({leases.of(mac, 39) for mac in macs} - {None}) == 40


def test_who_had_an_address_and_did_nothing_comes_last(leases: Leases) -> None:
    now = taking(leases, 0, 1, rate=10)  # ten, which ask again and again
    for now in range(1, 40):
        for number in range(10):
            if (offer := leases.offer(stranger(number), now)) is not None:
                leases.bind(stranger(number), offer.ip, now, 600)
        leases.offer(A, now)
    assert leases.of(A, now) is not None


def test_a_guest_in_a_known_machines_home(leases: Leases) -> None:
    leases = Leases(FIRST, FIRST)
    homes = known(leases, 1)
    (mac,) = homes
    bound(leases, A, 10)
    assert leases.is_home(FIRST)
    offer = leases.offer(mac, 11)
    assert offer is not None
    assert not leases.is_home(FIRST)  # the guest may be there: somebody has to look
    assert leases.conflict(FIRST, A, 12)
    assert leases.owner(FIRST, 12) == A  # it is: it is no guest any more
    assert leases.offer(mac, 13) is None


def test_what_another_answers_for_is_quarantined(leases: Leases) -> None:
    offer = leases.offer(A, 0)
    assert offer is not None
    assert leases.conflict(offer.ip, B, 1)
    assert leases.of(A, 1) is None
    assert leases.bind(A, offer.ip, 2, 600) is None
    assert not leases.conflict(offer.ip, B, 3)


def test_the_store_hears_whose_home_a_guest_has_left() -> None:
    seen: list[Lease] = []
    leases = Leases(FIRST, FIRST, on_change=seen.append)
    (mac,) = known(leases, 1)
    bound(leases, A, 10, 100)
    leases.owner(FIRST, 110)
    assert (seen[-1].mac, seen[-1].state) == (mac, State.RELEASED)
    bound(leases, A, 120)
    leases.release(A, FIRST, 121)
    assert (seen[-1].mac, seen[-1].state) == (mac, State.RELEASED)


def test_after_a_restart_who_is_known_is_not_idle(leases: Leases) -> None:
    bound(leases, A)
    bound(leases, B)
    other = Leases(FIRST, LAST)
    other.restore(list(leases.export()), 50, {A}.__contains__)
    assert other.idle == 1
    assert taking(other, 100, 150) == 150
    assert other.of(A, 150) is not None
    assert other.of(B, 150) is None


def test_withdraw_frees_an_offer_not_a_lease(leases: Leases) -> None:
    leases.offer(A, 0)
    leases.withdraw(A, 0)
    assert leases.of(A, 0) is None
    bound(leases, B)
    leases.withdraw(B, 0)
    assert leases.of(B, 0) is not None


def test_excluded_addresses() -> None:
    leases = Leases(FIRST, FIRST + 1, exclude=[FIRST])
    assert bound(leases, A) == FIRST + 1
    assert leases.offer(B, 0) is None
    assert leases.size == 1


def test_moving_the_range_drops_what_is_outside(leases: Leases) -> None:
    bound(leases, A)
    leases.set_range(IPv4Address("10.9.0.10"), IPv4Address("10.9.0.19"))
    assert leases.of(A, 1) is None
    assert bound(leases, A, 1) in IPv4Network("10.9.0.0/24")


def test_store_hears_of_leases_not_of_offers() -> None:
    seen: list[Lease] = []
    leases = Leases(FIRST, LAST, on_change=seen.append)
    ip = bound(leases, A)
    leases.release(A, ip, 1)
    ip = bound(leases, A, 2)
    leases.decline(A, ip, 3)
    states = [State.BOUND, State.RELEASED, State.BOUND, State.DECLINED]
    assert [lease.state for lease in seen] == states


def test_restore_brings_all_back(leases: Leases) -> None:
    one, two = bound(leases, A), bound(leases, B, 0, 10)
    other = Leases(FIRST, LAST)
    other.restore(list(leases.export()), 50)
    assert other.owner(one, 50) == A
    assert other.owner(two, 50) is None
    assert bound(other, B, 51) == two


def test_restore_skips_what_is_outside(leases: Leases) -> None:
    leases.restore([Lease(A, IPv4Address("192.0.2.1"), State.BOUND, 1e9)], 0)
    assert leases.of(A, 0) is None


def test_upside_down_range() -> None:
    with pytest.raises(UsageError, match="must have 1 to"):
        Leases(LAST, FIRST)


def test_carve() -> None:
    server = IPv4Address("10.0.0.1")
    assert carve(IPv4Network("10.0.0.0/24"), {server}) == (
        IPv4Address("10.0.0.128"),
        IPv4Address("10.0.0.254"),
    )
    assert carve(IPv4Network("10.0.0.0/30"), {IPv4Address("10.0.0.2")})[0] == server
    with pytest.raises(UsageError, match="no address for clients"):
        carve(IPv4Network("10.0.0.0/30"), {server, server + 1})


# Looking ahead


def test_strangers_get_what_was_looked_at(leases: Leases) -> None:
    leases.vouch(FIRST + 3, until=100)
    leases.vouch(FIRST + 5, until=110)
    got = [leases.offer(stranger(n), 50) for n in range(2)]
    assert {lease.ip for lease in got if lease is not None} == {FIRST + 3, FIRST + 5}
    assert leases.ahead.spend(FIRST + 3, 50)
    assert not leases.ahead.spend(FIRST + 3, 50)


def test_an_old_look_is_none(leases: Leases) -> None:
    leases.vouch(FIRST + 3, until=100)
    assert leases.ahead.ending(by=99) == []
    assert leases.ahead.ending(by=100) == [FIRST + 3]
    assert leases.offer(A, 100) is not None
    assert not leases.ahead.spend(FIRST + 3, 100)


def test_only_free_addresses_are_looked_at(leases: Leases) -> None:
    home = bound(leases, A)
    leases.vouch(home, until=100)
    assert len(leases.ahead) == 0
    leases.vouch(next(ip for ip in (FIRST, LAST) if ip != home), until=100)
    assert len(leases.unseen(99)) == 8
    assert len(leases.unseen(5)) == 5


def test_every_free_address_has_its_turn(leases: Leases) -> None:
    assert {ip for _ in range(5) for ip in leases.unseen(2)} == {FIRST + n for n in range(10)}


def test_an_address_in_use_is_avoided_for_a_while(leases: Leases) -> None:
    leases.vouch(FIRST, until=100)
    assert leases.avoid(B, FIRST, 0)
    assert not leases.avoid(B, FIRST, 0)
    assert len(leases.ahead) == 0
    got = [leases.offer(stranger(n), 1) for n in range(10)]
    assert sum(lease is None for lease in got) == 1
    assert FIRST not in {lease.ip for lease in got if lease is not None}
    assert leases.of(B, 1) is None


def test_what_is_bound_is_no_longer_vouched_for(leases: Leases) -> None:
    leases.vouch(FIRST, until=100)
    assert leases.bind(A, FIRST, 0, 600) is not None
    assert len(leases.ahead) == 0
