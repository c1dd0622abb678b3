from collections.abc import Iterable
from typing import NamedTuple

from aoe_fast.store import Export

class Settings(NamedTuple):
    config: bytes = b""
    allowed: tuple[bytes, ...] = ()
    holders: tuple[bytes, ...] = ()

def changes() -> int: ...
def read_settings(export: Export) -> Settings: ...
def write_settings(
    export: Export,
    *,
    config: bytes | None = None,
    allowed: Iterable[bytes] | None = None,
    holders: Iterable[bytes] | None = None,
) -> None: ...
def key_of(export: Export) -> str: ...
def take_restored(export: Export) -> bool: ...
