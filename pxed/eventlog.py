"""The event log in memory: the latest entries, bounded, for any number of followers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

Entry = dict[str, Any]


class EventLog:
    """Keeps the last ``limit`` entries; a follower that is too slow misses the oldest, not us."""

    def __init__(self, limit: int = 10_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._count = 0  # entries ever added
        self._news = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Append one entry (JSON values only); wakes the followers."""
        self._entries.append(entry)
        self._count += 1
        self._news.set()

    async def read(self, *, follow: bool) -> AsyncIterator[Entry]:
        """What is kept, oldest first; with ``follow`` also what comes, without end."""
        at = self._count - len(self._entries)
        while True:
            at = max(at, self._count - len(self._entries))
            start = at - (self._count - len(self._entries))
            for entry in list(self._entries)[start:]:
                yield entry
                at += 1
            if at < self._count:
                continue
            if not follow:
                return
            self._news.clear()
            await self._news.wait()
