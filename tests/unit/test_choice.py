"""Who may boot where an administrator approves each machine."""

import pytest

from pxed.choice import Choice
from pxed.config import parse
from pxed.mac import Mac
from pxed.probe import DOCTOR
from pxed.seat import Client

NAMED, OTHER = Mac("52:54:00:00:00:01"), Mac("52:54:00:00:00:02")
TEXT = f'interface = "eth0"\n[clients]\nadmit = "approve"\n[client."{NAMED}"]\nname = "seat"\n'


def test_a_stranger_waits_and_who_is_named_or_approved_does_not() -> None:
    choice = Choice(parse(TEXT))
    assert not choice.admits(OTHER, None)
    assert not choice.admits(OTHER, Client(OTHER))
    assert choice.admits(OTHER, Client(OTHER, admission="approved"))
    assert choice.admits(NAMED, Client(NAMED))
    assert not choice.admits(NAMED, Client(NAMED, admission="blocked"))


def test_the_doctors_address_on_the_wire_is_a_stranger_too() -> None:
    """Everybody can read which it is: only the doctor's own question, of no client, is let in."""
    choice = Choice(parse(TEXT))
    assert choice.admits(DOCTOR, None)
    assert not choice.admits(DOCTOR, Client(DOCTOR))


@pytest.mark.parametrize("mac", [OTHER, DOCTOR])
def test_open_to_all(mac: Mac) -> None:
    assert Choice(parse('interface = "eth0"')).admits(mac, Client(mac))
