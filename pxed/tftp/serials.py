"""Which machine a Raspberry Pi's serial number belongs to, as their DISCOVERs say. Pure.

Anybody can send DISCOVERs with made-up numbers, so what is remembered of machines that nothing is
known of has an end. The numbers of known machines never go for their sake.
"""

from collections import OrderedDict
from collections.abc import Callable

from pxed.mac import Mac

ROOM = 4096  # of the latest numbers, known machines' among them


class Serials:
    """A table of ``ROOM`` numbers at most, and one more for each machine that ``known`` confirms.

    ``known`` is asked when room is needed, so a machine may become known after it was heard.
    """

    def __init__(self, known: Callable[[Mac], bool] = lambda _: False) -> None:
        self._known = known
        self._latest: OrderedDict[str, Mac] = OrderedDict()  # oldest first
        self._kept: dict[Mac, str] = {}
        self._keeps: dict[str, Mac] = {}  # the same, the other way round
        self._sweep_at = ROOM

    def __len__(self) -> int:
        return len(self._latest) + len(self._kept)

    def get(self, serial: str) -> Mac | None:
        """Whose number this is."""
        return self._latest.get(serial) or self._keeps.get(serial)

    def learn(self, serial: str, mac: Mac) -> None:
        """``mac`` says that this number is its own; not believed of a stranger if it is taken."""
        owner = self.get(serial)
        if owner is not None and owner != mac and self._known(owner) and not self._known(mac):
            return
        if (before := self._keeps.pop(serial, None)) is not None:
            del self._kept[before]
        self._latest[serial] = mac
        self._latest.move_to_end(serial)
        while len(self._latest) > ROOM:
            oldest, its = self._latest.popitem(last=False)
            if self._known(its):
                self._keep(oldest, its)

    def _keep(self, serial: str, mac: Mac) -> None:
        """One number for each machine: who takes a known machine's address gains no room."""
        if (other := self._kept.pop(mac, None)) is not None:
            del self._keeps[other]
        self._kept[mac], self._keeps[serial] = serial, mac
        if len(self._kept) > self._sweep_at:  # some may have been forgotten meanwhile
            self._kept = {mac: its for mac, its in self._kept.items() if self._known(mac)}
            self._keeps = {its: mac for mac, its in self._kept.items()}
            self._sweep_at = max(ROOM, 2 * len(self._kept))
