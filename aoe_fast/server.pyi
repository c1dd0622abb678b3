from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from aoe_fast.port import Port
from aoe_fast.target import Target

COUNTERS: np.dtype[np.void]

class Server:
    @property
    def target(self) -> Target: ...
    @property
    def interfaces(self) -> tuple[str, ...]: ...
    @property
    def ports(self) -> list[Port]: ...
    @property
    def workers(self) -> int: ...
    @property
    def counters(self) -> NDArray[np.void]: ...
    @property
    def running(self) -> bool: ...
    def __init__(
        self,
        target: Target,
        interfaces: Sequence[str],
        *,
        workers: int = 1,
        ring_frames: int = 8192,
        write_frames: int = 2048,
        spin_us: int = 50,
        alarm: Callable[[str], None] | None = None,
    ) -> None: ...
    def handed_over(self) -> tuple[int, int]: ...
    def answered(self) -> tuple[int, int]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
