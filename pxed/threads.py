"""Threads that are there before they are needed, or an error of one line at the start.

A thread pool of Python's makes its threads one by one as work comes, and raises RuntimeError into
the middle of a client's boot where there is no room for one.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from aoe_fast import AoeError, threads
from pxed.errors import HostError


def begin(thread: threading.Thread) -> None:
    """Start ``thread``; HostError if there cannot be one more."""
    try:
        threads.begin(thread)
    except AoeError as error:
        raise HostError(str(error)) from None


class Pool(ThreadPoolExecutor):
    """``count`` threads named after ``name``, all of them started now; HostError if that fails."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        # While each waits for the others none is idle, so that the next one is made.
        all_there = threading.Barrier(count)
        try:
            for _ in range(count):
                self.submit(all_there.wait)
        except RuntimeError:
            all_there.abort()
            self.shutdown(cancel_futures=True)
            raise HostError(threads.NO_ROOM) from None
