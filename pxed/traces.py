"""The events of each machine's present boot: what its story and its end are told from. Pure."""

from collections import OrderedDict, deque
from collections.abc import Sequence

from pxed.events import Event, Kind
from pxed.mac import Mac

_EACH = 64  # events of a boot that are kept
_MACHINES = 4096
_DULL = (Kind.AOE_HEARD, Kind.ROUTER_ADVERT)


class Traces:
    """The events of each machine's present boot, bounded in every direction."""

    def __init__(self) -> None:
        self._of: OrderedDict[Mac, deque[Event]] = OrderedDict()

    def begin(self, mac: Mac) -> None:
        """A new boot: what was before does not count."""
        self._of.pop(mac, None)

    def add(self, event: Event) -> None:
        """One more event of a machine's boot."""
        if event.mac is None or event.kind in _DULL:
            return
        trace = self._of.get(event.mac)
        if trace is None:
            trace = self._of[event.mac] = deque(maxlen=_EACH)
            if len(self._of) > _MACHINES:
                self._of.popitem(last=False)
        trace.append(event)

    def of(self, mac: Mac) -> Sequence[Event]:
        """The machine's events, oldest first."""
        return tuple(self._of.get(mac, ()))
