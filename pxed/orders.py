"""What a machine is ordered to boot: one word that people type, the store keeps and boots follow.

``diskless``, ``provision``, ``local`` (its own disk), ``image=NAME[@VERSION or @CHANNEL]``, or
nothing: what its class boots. Pure.
"""

import re
from dataclasses import dataclass

from pxed.errors import UsageError

MODES = ("diskless", "provision", "local")
_IMAGE = re.compile(r"image=([A-Za-z0-9][\w.+-]*(?:@[A-Za-z0-9][\w.+-]*)?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Order:
    """``mode`` and ``image``; empty: as the class has it."""

    mode: str = ""
    image: str = ""


def parse(text: str) -> Order:
    """The order that ``text`` is; UsageError says what is allowed."""
    if text in ("", *MODES):
        return Order(mode=text)
    found = _IMAGE.fullmatch(text)
    if found is None:
        allowed = ", ".join(MODES)
        raise UsageError(f"{text!r} cannot be booted: write {allowed} or image=NAME[@VERSION]")
    return Order(mode="diskless", image=found[1])
