"""Fixtures that every kind of test shares: namespaces with a cable between them, and `requires`."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pxed.lab.netns import Namespace, veth

WITHOUT_PRIVILEGE = ("setpriv", "--bounding-set", "-all", "--")
"""Before a command: it runs as root that may do nothing special (a plain user may not even be able
to read this checkout)."""


def requires(*programs: str, root: bool = True) -> None:
    """Skip the calling test, loudly, unless it runs as root and finds every program named."""
    if root and os.geteuid() != 0:
        pytest.skip("needs root: run script/test with sudo")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run script/bootstrap")


@dataclass
class Cable:
    """Two namespaces joined by a veth cable: ``eth0`` in each, 10.77.0.1/24 in ``srv``."""

    srv: Namespace
    cli: Namespace


@pytest.fixture
def cable() -> Iterator[Cable]:
    requires("ip", "nsenter", "unshare", "setpriv")
    with Namespace("srv") as srv, Namespace("cli") as cli:
        veth(srv, "eth0", cli, "eth0")
        srv.ip("addr add 10.77.0.1/24 dev eth0")
        yield Cable(srv, cli)
