"""Serial numbers of Raspberry Pis: a bounded table in which a flood cannot hurt a known machine."""

from pxed.mac import Mac
from pxed.tftp.serials import ROOM, Serials

PI, OTHER, STRANGER = Mac("dc:a6:32:01:02:03"), Mac("dc:a6:32:01:02:04"), Mac("02:00:00:00:00:01")


def made_up(number: int) -> tuple[str, Mac]:
    return f"{number:08x}", Mac(f"02:01:{number >> 24:02x}:{number >> 16 & 255:02x}:"
                                f"{number >> 8 & 255:02x}:{number & 255:02x}")  # fmt: skip


def flooded(table: Serials, count: int = 2 * ROOM) -> None:
    for number in range(count):
        table.learn(*made_up(number))


def test_the_latest_are_remembered_and_no_more_than_there_is_room() -> None:
    table = Serials()
    flooded(table)
    assert len(table) == ROOM
    assert table.get(made_up(0)[0]) is None
    assert table.get(made_up(2 * ROOM - 1)[0]) == made_up(2 * ROOM - 1)[1]
    table.learn("deadbeef", PI)  # the table never closes
    assert table.get("deadbeef") == PI


def test_a_flood_does_not_take_a_known_machines_number() -> None:
    known = {PI}
    table = Serials(known.__contains__)
    table.learn("deadbeef", PI)
    flooded(table)
    assert table.get("deadbeef") == PI
    assert len(table) == ROOM + 1


def test_a_machine_that_becomes_known_after_it_was_heard_is_kept() -> None:
    known: set[Mac] = set()
    table = Serials(known.__contains__)
    table.learn("deadbeef", PI)
    known.add(PI)
    flooded(table)
    assert table.get("deadbeef") == PI


def test_a_stranger_cannot_take_a_known_machines_number() -> None:
    known = {PI, OTHER}
    table = Serials(known.__contains__)
    table.learn("deadbeef", PI)
    table.learn("deadbeef", STRANGER)
    assert table.get("deadbeef") == PI
    flooded(table)
    table.learn("deadbeef", STRANGER)
    assert table.get("deadbeef") == PI
    table.learn("deadbeef", OTHER)  # its board was set to another address
    assert table.get("deadbeef") == OTHER
    assert len(table) == ROOM


def test_a_number_of_a_stranger_may_change_hands() -> None:
    table = Serials({PI}.__contains__)
    table.learn("deadbeef", STRANGER)
    table.learn("deadbeef", PI)
    assert table.get("deadbeef") == PI


def test_many_numbers_in_a_known_machines_name_take_the_room_of_one() -> None:
    table = Serials({PI}.__contains__)
    for number in range(3 * ROOM):
        table.learn(f"{number:08x}", PI)
    assert len(table) == ROOM + 1


def test_machines_that_were_forgotten_give_their_room_back() -> None:
    known: set[Mac] = set()
    table = Serials(known.__contains__)
    for number in range(4 * ROOM):
        serial, mac = made_up(number)
        known.add(mac)
        table.learn(serial, mac)
    assert len(table) == 4 * ROOM
    known.clear()
    known.add(PI)
    for number in range(4 * ROOM, 9 * ROOM):
        serial, mac = made_up(number)
        known.add(mac)
        table.learn(serial, mac)
        known.discard(mac)
    known |= {made_up(n)[1] for n in range(10 * ROOM, 16 * ROOM)}
    for number in range(10 * ROOM, 16 * ROOM):
        table.learn(*made_up(number))
    assert len(table) <= 7 * ROOM
