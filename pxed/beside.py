"""Another block server at our addresses: looked for before we answer there, and while we do."""

import asyncio
from collections.abc import Callable

import click

from aoe_fast import AoeError, Target
from aoe_fast.presence import Presence, Seen, seen_in
from aoe_fast.rivals import Lookout, check_neighbours, check_rivals
from pxed.config import Config
from pxed.errors import HostError, UsageError
from pxed.exports import Exports
from pxed.images import CONFIG_SLOT, REPORT_SLOT


class Beside:
    """Other servers on our segment and, which no frame tells, on this very machine.

    From the first moment on others of this machine are told what we serve. ``alarm(about, text)``
    is called in the loop that this was made in, of what comes later. ``close`` at the end.
    """

    def __init__(
        self, config: Config, target: Target, exports: Exports, alarm: Callable[[str, str], None]
    ) -> None:
        self._config = config
        self._target = target
        self._exports = exports
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(alarm, f"rival {text}", text)

        self._lookout = Lookout(tell)
        self._presence = Presence("pxed", self._seen, self._look)
        self._presence.listen(config.interface)
        try:
            self._presence.start()
        except AoeError as error:
            self._presence.close()
            raise HostError(str(error)) from None

    def close(self) -> None:
        """Be found no longer; closing twice is fine."""
        self._presence.close()

    def refuse(self) -> None:
        """UsageError if another target has one of our addresses: clients would mix the two."""
        if self._config.aoe.force:
            return
        interface = self._config.interface
        try:
            check_neighbours(interface, self._seen(), self._presence.since)
            check_rivals(interface, self._target.view_of(None))
        except click.UsageError as error:
            raise UsageError(
                f"{error.message.partition(': ')[0]}: stop that server, or give our class another"
                " shelf ([class.x86] shelf); [aoe] force = true starts all the same"
            ) from None

    def _look(self) -> None:
        """What the segment's watch cannot hear: servers of this machine."""
        self._lookout.look(lambda: check_neighbours(self._config.interface, self._seen()))

    def _seen(self) -> Seen:
        """Who sees what: of our shelves also what the next machine will be given."""
        given = [
            (None, shelf, slot)
            for shelf in self._exports.shelves.values()
            for slot in (CONFIG_SLOT, REPORT_SLOT)
        ]
        return seen_in([*self._target.rows(), *given])
