from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from aoe_fast.target import Target

COUNTERS: np.dtype[np.void]

class Server:
    @property
    def target(self) -> Target: ...
    @property
    def interfaces(self) -> tuple[str, ...]: ...
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
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
