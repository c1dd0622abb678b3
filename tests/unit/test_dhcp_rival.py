"""Who else answers DHCP here."""

from ipaddress import IPv4Address

import pytest

from pxed.dhcp.bootplan import BootPlan
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.dhcp.rival import Rival, answer, merge, questions
from pxed.mac import Mac

OWN, THEIRS = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")
IP = IPv4Address("10.77.0.2")


def found(mode: Mode) -> tuple[Rival, ...]:
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.59"))
    server = Policy(Settings(mode, IP, 24), leases, lambda *_: BootPlan("snponly.efi"))
    replies = [
        answer(reply.message, OWN, 7, THEIRS, IP)
        for question in questions(OWN, 7)
        for reply in server.handle(question, 0).replies
    ]
    return merge([reply for reply in replies if reply is not None])


@pytest.mark.parametrize(
    ("mode", "leases", "boots"),
    [(Mode.ALL, True, True), (Mode.PXE_ONLY, True, True), (Mode.PROXY, False, True)],
)
def test_what_a_rival_does(mode: Mode, leases: bool, boots: bool) -> None:
    (rival,) = found(mode)
    assert (rival.ip, rival.mac, rival.leases, rival.boots) == (IP, THEIRS, leases, boots)
    assert rival.file == "snponly.efi"
    assert rival.address.startswith("10.77.0.5") is leases


def test_it_is_said_in_one_line() -> None:
    line = "another DHCP server answers on this segment: 10.77.0.2 (52:54:00:00:00:02)"
    assert str(Rival(IP, THEIRS, leases=True, boots=False)) == line


def test_other_traffic_is_no_answer() -> None:
    question, _, _ = questions(OWN, 7, IP)
    assert answer(question, OWN, 7, THEIRS, IP) is None
    assert answer(b"rubbish", OWN, 7, THEIRS, IP) is None


def test_another_pxed_answers_and_takes_us_for_no_machine() -> None:
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.59"))
    server = Policy(Settings(Mode.ALL, IP, 24), leases, lambda *_: BootPlan("snponly.efi"))
    outcomes = [server.handle(question, 0) for question in questions(OWN, 7)]
    assert all(outcome.replies and not outcome.events for outcome in outcomes)
