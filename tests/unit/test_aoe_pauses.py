"""A worker waits for a fuller batch only while that pays."""

from itertools import pairwise

from aoe_fast.pauses import tried


def test_pauses_that_fill_their_batches_go_on() -> None:
    assert tried(["full"], 8) == list(range(8))


def test_pauses_that_bring_too_little_become_rare() -> None:
    """The batch of the pause itself is the first one of those that are skipped."""
    assert tried(["few"], 100) == [0, 1, 4, 11, 26, 57]


def test_a_batch_that_was_all_there_is_counts_as_a_failure() -> None:
    """Its clients do nothing while the server waits for them."""
    assert tried(["all"], 100) == [0, 2, 6, 14, 30, 62]


def test_at_most_one_pause_in_a_thousand_batches_is_lost() -> None:
    last = tried(["few"], 20_000)
    assert last[-1] - last[-2] == 1023


def test_a_load_that_becomes_heavy_is_found() -> None:
    first = tried(["few"], 60)
    assert tried([*["few"] * len(first), "full"], 200)[-60:] == list(range(140, 200))


def test_one_full_batch_alone_does_not_bring_pauses_back() -> None:
    """A failure after it is followed by no fewer batches without one than the one before it."""
    found = tried(["few", "few", "few", "full", "few"], 60)
    gaps = [after - before for before, after in pairwise(found)]
    assert max(gaps[:3]) < gaps[4]
