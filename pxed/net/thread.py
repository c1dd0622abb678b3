"""An event loop in a thread of its own: a service that must not hold up the others, or one that
lives inside another network namespace."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import uvloop

from pxed.threads import begin

_T = TypeVar("_T")


class LoopThread:
    """A thread with a loop that ``new_loop`` makes; a context manager.

    The thread lives inside ``inside`` (such as ``Namespace.inside()``) from before its first socket
    to the end of its loop. What ``call`` or ``run`` started should be closed before ``close``.
    HostError: there is no room for a thread.
    """

    def __init__(
        self,
        inside: AbstractContextManager[None] | None = None,
        *,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
        name: str = "pxed-loop",
    ) -> None:
        self._inside = inside if inside is not None else contextlib.nullcontext()
        self._loop = new_loop()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            begin(self._thread)
        except BaseException:
            self._loop.close()
            raise
        self._ready.result()

    def _work(self) -> None:
        try:
            with self._inside:
                self._ready.set_result(None)
                asyncio.set_event_loop(self._loop)
                self._loop.run_forever()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise
        finally:
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, _T], timeout: float = 30) -> _T:
        """Run ``work`` on the loop; its result or its exception."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The same for a caller with a loop of its own, which goes on meanwhile."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Stop the loop and end the thread; closing twice is fine."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def __enter__(self) -> "LoopThread":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
