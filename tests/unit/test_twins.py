"""One address at two places is noticed, and an ordinary boot is not taken for that."""

import pytest

from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.twins import Twins

SEAT = Mac("52:54:00:00:00:01")


def asks(at: float, firmware: str = "bios") -> Event:
    return Event(Kind.DISCOVER, SEAT, at, {"firmware": firmware})


def is_given(at: float) -> Event:
    return Event(Kind.ACK, SEAT, at)


def told(twins: Twins, *heard: tuple[Event, float | None]) -> list[str]:
    return [text for event, last in heard if (text := twins.heard(event, last)) is not None]


def test_a_machine_that_boots_and_uses_its_disks_at_once() -> None:
    (text,) = told(Twins(), (asks(10), None), (is_given(12), 11.5))
    assert text.startswith(SEAT)
    assert "two machines" in text


@pytest.mark.parametrize("last", [None, 3.0, 9.99, 10.01], ids=["never", "before", "just", "late"])
def test_an_ordinary_boot(last: float | None) -> None:
    assert told(Twins(), (asks(10), None), (is_given(12), last)) == []


def test_a_running_system_that_renews_its_address() -> None:
    assert told(Twins(), (asks(10, firmware=""), None), (is_given(12), 11.9)) == []


def test_an_ack_without_a_discover() -> None:
    assert told(Twins(), (is_given(12), 11.9)) == []


def test_it_is_not_said_again_at_once() -> None:
    twins = Twins()
    assert told(twins, (asks(10), None), (is_given(12), 11)) != []
    assert told(twins, (asks(20), None), (is_given(22), 21)) == []
    assert told(twins, (asks(90), None), (is_given(92), 91)) != []
