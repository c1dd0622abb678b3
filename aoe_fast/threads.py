"""Starting a thread where there may be no room for one."""

import threading

from aoe_fast.wire import AoeError

NO_ROOM = "no more threads can be started: raise the limit (ulimit -u, ulimit -v, TasksMax=)"


def begin(thread: threading.Thread) -> None:
    """Start ``thread``; AoeError if there cannot be one more."""
    try:
        thread.start()
    except RuntimeError:
        raise AoeError(NO_ROOM) from None
