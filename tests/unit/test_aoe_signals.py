"""A signal ends ``aoe-fast serve`` whenever it comes."""

import ctypes
import functools
import operator
import os
import select
import signal
from typing import Any

import pytest

from aoe_fast.cli import _signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_comes_as_the_wait_begins_is_not_slept_through(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with _signals() as wake:
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        # Python does not come to a handler of its own between these two: libc's raise(3) does not
        # look for one as os.kill does, and map calls one after the other.
        raised = functools.partial(ctypes.CDLL(None)["raise"], number)
        steps: list[Any] = [raised, functools.partial(poll.poll, 60_000)]
        _, ready = map(operator.call, steps)
        assert [fd for fd, _ in ready] == [wake]
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1, "it goes on being written to"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wake)
