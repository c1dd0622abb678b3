"""What is said of packets that a port lost."""

from pxed.overrun import AGAIN, Overruns


def test_nothing_lost_nothing_said() -> None:
    overruns = Overruns()
    assert overruns.look("67/udp", 0, 0) is None
    assert overruns.look("67/udp", 0, AGAIN) is None


def test_what_is_lost_is_told_and_then_what_was_lost_since() -> None:
    overruns = Overruns()
    assert "port 67/udp: 5 packets were dropped" in (overruns.look("67/udp", 5, 0) or "")
    assert overruns.look("67/udp", 9, 1) is None
    assert "port 69/udp: 1 packets" in (overruns.look("69/udp", 1, 1) or "")
    assert "port 67/udp: 7 packets" in (overruns.look("67/udp", 12, AGAIN) or "")
    assert overruns.look("67/udp", 12, 3 * AGAIN) is None


def test_a_socket_that_was_opened_anew_counts_from_0() -> None:
    overruns = Overruns()
    overruns.look("67/udp", 50, 0)
    assert "port 67/udp: 3 packets" in (overruns.look("67/udp", 3, AGAIN) or "")
