"""The event log: the latest entries in memory for any number of followers, more in the store."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from itertools import islice
from typing import Any

Entry = dict[str, Any]

LASTING = frozenset(("alarm", "rival", "rival-gone", "mode"))
"""Kinds of what an admin has to know, however much else is said."""

Archive = Callable[[float, int], Iterable[Entry]]
"""Entries from a time on, with ids below a number, oldest first."""


def line_of(fields: Mapping[str, Any]) -> str:
    """``fields`` as key=value words on one line; what has blanks or quotes in it is a JSON text."""
    words = []
    for key, value in fields.items():
        text = "" if value is None else str(value)
        if text:
            plain = text.isprintable() and not set(text) & {" ", '"', "="}
            words.append(f"{key}={text if plain else json.dumps(text)}")
    return " ".join(words)


class EventLog:
    """Keeps the last ``limit`` entries; a follower that is too slow misses the oldest, not us.

    Each entry gets the next ``id``. ``archive`` gives older ones to who asks for them; ``unsaved``
    takes out what it has not got yet. The last ``lasting`` entries of what a flood of others must
    not push out are kept for longer.
    """

    def __init__(self, limit: int = 10_000, lasting: int = 1000) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._lasting: deque[Entry] = deque(maxlen=lasting)  # older than all of those
        self._count = 0  # the id of the last entry
        self._saved = 0
        self._news = asyncio.Event()
        self.archive: Archive | None = None

    def restore(self, last: int, entries: Iterable[Entry]) -> None:
        """Go on after the entry ``last``; ``entries`` (with ids that end with it) are shown too."""
        self._entries.extend(entries)
        self._count = self._saved = last

    def add(self, entry: Entry) -> None:
        """Append one entry (JSON values only); wakes the followers."""
        self._count += 1
        entry["id"] = self._count
        if len(self._entries) == self._entries.maxlen and self._entries[0].get("kind") in LASTING:
            self._lasting.append(self._entries[0])
        self._entries.append(entry)
        self._news.set()

    def latest(self, *kinds: str) -> list[Entry]:
        """The entries of these kinds that are in memory, oldest first."""
        return [entry for entry in self._entries if entry.get("kind") in kinds]

    @property
    def has_unsaved(self) -> bool:
        """Whether ``unsaved`` would give out anything."""
        return self._saved < self._count

    def unsaved(self, limit: int) -> list[Entry]:
        """The oldest entries that were not given out by this yet; those that fell out are lost."""
        first = self._count - len(self._entries) + 1
        skip = max(self._saved + 1 - first, 0)
        found = list(islice(self._entries, skip, skip + limit))
        if found:
            self._saved = found[-1]["id"]
        return found

    async def read(self, *, follow: bool, since: float | None = None) -> AsyncIterator[Entry]:
        """What is kept, oldest first; with ``follow`` also what comes, without end.

        ``since``: from this time on (seconds since the epoch), out of the archive where need be.
        """
        at = self._count - len(self._entries)
        if since is not None and self.archive is not None:
            for count, entry in enumerate(self.archive(since, at + 1)):
                yield entry
                if count % 100 == 99:
                    await asyncio.sleep(0)
        else:
            for entry in [e for e in self._lasting if since is None or e["time"] >= since]:
                yield entry
        while True:
            at = max(at, self._count - len(self._entries))
            start = at - (self._count - len(self._entries))
            # A few at a time: who takes them may let others run, and then new ones come.
            for entry in list(islice(self._entries, start, start + 500)):
                if since is None or entry["time"] >= since:
                    yield entry
                at += 1
            if at < self._count:
                continue
            if not follow:
                return
            self._news.clear()
            await self._news.wait()
