"""The two TFTP engines under one interface: the compiled one, and the reference in plain Python."""

from collections.abc import Callable
from typing import Protocol

from pxed.events import Event
from pxed.tftp.codec import Request
from pxed.tftp.session import MAX_BLKSIZE, File, Peer
from pxed.tftp.session import Session as Compiled
from tests.reference.tftp_reference import Session as Reference


class Session(Protocol):
    """One transfer: packets and the time in, packets and events out."""

    events: list[Event]
    blksize: int

    @property
    def done(self) -> bool: ...

    @property
    def deadline(self) -> float: ...

    def start(self, now: float, wall: float) -> list[bytes]: ...

    def receive(self, data: bytes, now: float, wall: float) -> list[bytes]: ...

    def expire(self, now: float, wall: float) -> list[bytes]: ...

    def abort(self, why: str, wall: float) -> None: ...


class Native:
    """``pxed.tftp.session`` and its transfer, driven by hand as the mover drives it."""

    def __init__(
        self,
        request: Request,
        file: File,
        peer: Peer,
        *,
        mtu: int = 1500,
        largest_block: int = MAX_BLKSIZE,
    ) -> None:
        self.session = Compiled(request, file, peer, mtu=mtu, largest_block=largest_block)
        self.transfer = self.session.transfer
        self.events: list[Event] = []
        self.blksize = self.session.blksize

    @property
    def done(self) -> bool:
        return self.session.done

    @property
    def deadline(self) -> float:
        return self.transfer.deadline

    def start(self, now: float, wall: float) -> list[bytes]:
        return self._noted(self.transfer.start(now), wall)

    def receive(self, data: bytes, now: float, wall: float) -> list[bytes]:
        return self._noted(self.transfer.receive(data, now), wall)

    def expire(self, now: float, wall: float) -> list[bytes]:
        return self._noted(self.transfer.expire(now), wall)

    def abort(self, why: str, wall: float) -> None:
        self.session.stopping(why)
        self.transfer.stop(wall)
        self._noted([], wall)

    def _noted(self, packets: list[bytes], wall: float) -> list[bytes]:
        self.events += self.session.news(wall)
        return packets


Engine = Callable[..., Session]
ENGINES: dict[str, Engine] = {"compiled": Native, "reference": Reference}
