"""Installations on local disks as the server sees them: its policy, and what an installer reports.

Pure. The policy goes to the client on its own report device (docs/architecture.md), so it needs no
address and no port; the result comes back there.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pxed.config import Provision

ORDERS_BYTES = 4096
RESULTS = frozenset(("installed", "upgraded", "kept", "refused"))
"""Last steps of an installer that did what it should; ``failed`` is the other one."""
DONE = RESULTS - {"refused"}
"""Those after which the machine has what was offered, or is not to get it."""


def policy(of_class: Provision | None, of_client: Mapping[str, Any] | None) -> Provision | None:
    """What holds for one machine; None: nobody said anything, so the installer asks."""
    if of_client is None:
        return of_class
    return replace(of_class or Provision(), **of_client)


def stays(step: str, policy: Provision | None, *, standing: bool) -> bool:
    """Whether a machine boots from its disk from now on, after an installer's last step.

    ``standing``: it provisions at every boot, and goes on doing so: the next image shall find it.
    """
    return step in DONE and not standing and (policy is None or policy.then == "local")


def orders(policy: Provision | None, released: str) -> bytes:
    """What the installer reads: lines KEY=VALUE, padded with NULs to ``ORDERS_BYTES``.

    ``released`` is the image's date, which may differ from what the image itself says; or empty.
    """
    lines = ["pxed-orders 1"]
    if policy is not None:
        lines += [
            f"unattended={'yes' if policy.unattended else 'no'}",
            f"wipe={'yes' if policy.wipe else 'no'}",
            f"disk={policy.disk}",
        ]
        if policy.supported_until:
            lines.append(f"until={policy.supported_until}")
    if released:
        lines.append(f"released={released}")
    return "".join(f"{line}\n" for line in lines).encode("ascii").ljust(ORDERS_BYTES, b"\0")
