"""What the routes need of the server, and nothing else."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from pxed.choice import Choice
from pxed.clients import Clients
from pxed.config import Class, Config
from pxed.dhcp.policy import Policy
from pxed.events import Event
from pxed.exports import Exports
from pxed.images import Image
from pxed.keeper import Keeper
from pxed.library import Library
from pxed.midlayers import Midlayers
from pxed.net.link import Link
from pxed.preparing import Preparing
from pxed.probe import Probe
from pxed.seat import Client
from pxed.store import Store
from pxed.watch import Watch

T = TypeVar("T")


class Core(Protocol):
    """The running server as the routes see it; ``pxed.app.App`` is one."""

    config: Config
    reread: Callable[[], Config] | None
    link: Link
    choice: Choice
    preparing: Preparing
    library: Library
    midlayers: Midlayers
    exports: Exports
    keeper: Keeper
    store: Store
    watch: Watch

    @property
    def images(self) -> dict[str, Image]: ...

    @property
    def clients(self) -> Clients: ...

    @property
    def policy(self) -> Policy: ...

    def emit(self, event: Event) -> None: ...

    async def saved(self, changed: Iterable[Client]) -> None: ...

    def use_images(self, classes: Mapping[str, Class] | None = None) -> dict[str, Image]: ...

    def probe(self) -> Probe: ...

    async def blocking(self, call: Callable[..., T], *args: Any) -> T: ...
