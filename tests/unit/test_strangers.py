"""What is done on trust for machines that have only asked, and where it ends."""

from pxed import strangers as module
from pxed.events import Event, Kind
from pxed.mac import Mac
from pxed.seat import Client, Stage, State, Step
from pxed.strangers import (
    AT_ALL,
    LOG_BURST,
    MOST,
    TAKEN,
    TRUST,
    YOUNG,
    Strangers,
    is_stranger,
    proves,
    takes,
)

A = Mac("52:54:00:00:00:0a")


def made_up(number: int) -> Mac:
    return Mac(f"02:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}")


def flood(count: int, now: float = 0.0) -> Strangers:
    strangers = Strangers()
    for number in range(count):
        strangers.asks(made_up(number), now)
    return strangers


def test_a_room_of_new_seats_gets_its_devices_at_once() -> None:
    strangers = Strangers()
    assert all(strangers.asks(made_up(number), 0) for number in range(TRUST))


def test_beyond_that_they_wait_for_the_next_word() -> None:
    strangers = flood(TRUST)
    assert not strangers.asks(A, 1)
    assert not strangers.asks(A, 2)
    assert strangers.proven(A)  # its devices have still to be made
    assert not strangers.proven(A)


def test_one_that_has_its_devices_needs_them_once() -> None:
    strangers = flood(0)
    assert strangers.asks(A, 0)
    assert strangers.asks(A, 4)  # the same one again
    assert not strangers.proven(A)


def test_who_shows_to_be_there_makes_room_for_another() -> None:
    strangers = flood(TRUST)
    strangers.proven(made_up(3))
    assert strangers.asks(A, 1)


def test_a_table_that_is_within_its_limit_is_left_alone() -> None:
    assert flood(MOST).too_many(1e6) == []


def test_the_longest_silent_ones_are_forgotten() -> None:
    strangers = flood(MOST + 5)
    assert strangers.too_many(YOUNG - 1) == []  # they may still be on their way
    assert strangers.too_many(YOUNG + 1) == [made_up(number) for number in range(5)]
    assert len(strangers) == MOST
    assert strangers.asks(A, YOUNG + 2)  # and their devices are free again


def test_a_flood_is_bounded_at_once() -> None:
    strangers = flood(AT_ALL + 500)
    assert len(strangers.too_many(1)) == 500


def test_the_log_takes_a_room_and_no_flood() -> None:
    strangers = Strangers()
    assert all(strangers.may_log(1.0) for _ in range(int(LOG_BURST)))
    assert not strangers.may_log(1.1)
    assert strangers.unlogged == 1
    assert sum(strangers.may_log(11.1) for _ in range(100)) == 10 * module.LOG_RATE


def test_who_is_a_stranger() -> None:
    asked = Client(A, boots=1, timeline=[Step(Stage.DISCOVER, 1.0), Step(Stage.OFFER, 1.1)])
    assert is_stranger(asked)
    assert not is_stranger(Client(A, boots=2))
    assert not is_stranger(Client(A, boots=1, name="seat-01"))
    assert not is_stranger(Client(A, boots=1, order="local"))
    words = [*asked.timeline, Step(Stage.IPXE, 1.0)]
    assert is_stranger(Client(A, State.BOOTING, boots=1, timeline=words))  # anybody can say so
    done = [*words, Step(Stage.BOOT_FILE, 1.2)]
    assert not is_stranger(Client(A, State.BOOTING, boots=1, timeline=done))
    assert not is_stranger(Client(A, State.RUNNING, boots=1))
    assert not is_stranger(Client(A, State.FAILED, boots=1, timeline=[Step(Stage.BOOT_FILE, 1.0)]))


def test_what_proves_that_somebody_is_there() -> None:
    assert not proves(Event(Kind.DISCOVER, A, 1.0))
    assert not proves(Event(Kind.IGNORED, A, 1.0))
    for kind in (Kind.REQUEST, Kind.ACK):  # these can be made up too
        assert not proves(Event(kind, A, 1.0))
        assert takes(Event(kind, A, 1.0))
    for kind in (Kind.TFTP_PROBE, Kind.HTTP_READ, Kind.AOE_FOUND):
        assert proves(Event(kind, A, 1.0))
        assert not takes(Event(kind, A, 1.0))


def test_who_takes_its_offer_gets_its_devices_then() -> None:
    strangers = flood(TRUST)
    assert not strangers.asks(A, 1)
    assert strangers.takes(A, 2)
    assert not strangers.takes(A, 3)  # once
    assert A in strangers
    assert not strangers.proven(A)
    assert A not in strangers


def test_who_took_its_offer_makes_room_for_who_asks() -> None:
    strangers = flood(TRUST)
    assert not strangers.takes(made_up(0), 1)
    assert strangers.asks(A, 1)
    assert strangers.asks(made_up(0), 2)  # has them


def test_those_who_took_it_and_go_no_further_are_bounded() -> None:
    strangers = Strangers()
    for number in range(TAKEN + 5):
        strangers.asks(made_up(number), 0)
        strangers.takes(made_up(number), 0)
    assert len(strangers._taken) == TAKEN
    assert strangers.too_many(YOUNG - 1) == []
    gone = strangers.too_many(YOUNG + 1)
    assert set(gone) >= {made_up(number) for number in range(TAKEN // 2)}
    assert len(gone) == len(set(gone))
    strangers.hears(A, YOUNG + 1)
    assert strangers.takes(A, YOUNG + 1)


def test_taking_an_offer_is_no_word_of_who_is_known() -> None:
    assert not Strangers().takes(A, 1)
