"""One machine's share of the log."""

from pxed.mac import Mac
from pxed.shares import BURST, RATE, SPARED, Shares

A, B = Mac("52:54:00:00:00:0a"), Mac("52:54:00:00:00:0b")


def chat(shares: Shares, mac: Mac, count: int, now: float = 0.0) -> int:
    return sum(shares.may_log(mac, now, matters=False) for _ in range(count))


def test_a_few_boots_are_logged_whole() -> None:
    assert chat(Shares(), A, int(BURST - SPARED)) == BURST - SPARED


def test_a_machine_that_says_more_is_cut_short_and_the_others_are_not() -> None:
    shares = Shares()
    assert chat(shares, A, 5000) == BURST - SPARED
    assert chat(shares, B, 10) == 10
    assert shares.total == 5000 - (BURST - SPARED)
    assert shares.left_out() == [(A, shares.total)]
    assert shares.left_out() == []


def test_what_comes_of_its_boot_is_logged_all_the_same() -> None:
    shares = Shares()
    chat(shares, A, 5000)
    assert sum(shares.may_log(A, 0, matters=True) for _ in range(500)) == SPARED


def test_its_share_comes_back() -> None:
    shares = Shares()
    chat(shares, A, 5000)
    assert chat(shares, A, 500, now=10) == 10 * RATE
    assert chat(shares, A, 5000, now=10 + BURST / RATE) == BURST - SPARED


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    shares = Shares()
    assert chat(shares, A, 10, now=1e9) == 10
    assert chat(shares, A, 10, now=0) == 10


def test_who_left_out_most_comes_first() -> None:
    shares = Shares()
    chat(shares, A, 1000)
    chat(shares, B, 2000)
    assert [mac for mac, _ in shares.left_out()] == [B, A]


def test_the_table_is_bounded() -> None:
    shares = Shares()
    for number in range(20_000):
        mac = Mac(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
        chat(shares, mac, 2, now=number / 1000)
    assert len(shares) <= 1025
