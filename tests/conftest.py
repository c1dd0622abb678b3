"""Fixtures that every kind of test shares: namespaces with a cable between them, and `requires`."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pxed.client.debian import MIRROR
from pxed.errors import HostError
from pxed.lab.netns import Namespace, veth

WITHOUT_PRIVILEGE = ("setpriv", "--bounding-set", "-all", "--")
"""Before a command: it runs as root that may do nothing special (a plain user may not even be able
to read this checkout)."""


# An example is no slower because another program has the processor, and a run finds what the run
# before it found: the same examples each time. PXED_EXPLORE=1 looks at others.
settings.register_profile(
    "pxed", deadline=None, derandomize="PXED_EXPLORE" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("pxed")

# A shell starts what is to run in the background with SIGINT ignored, and children inherit that: no
# test that sends one could pass.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# CI ends after its time, ready or not: on a machine that is too slow for all tests, those that take
# minutes are the ones to go without.
LONG_MINUTES = os.environ.get("PXED_LONG_MINUTES")
_STARTED = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With PXED_LONG_MINUTES the long tests come last."""
    if LONG_MINUTES is not None:
        items.sort(key=lambda item: item.get_closest_marker("long") is not None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """And after so many minutes none is begun any more: it is skipped, loudly."""
    if LONG_MINUTES is None or item.get_closest_marker("long") is None:
        return
    spent = (time.monotonic() - _STARTED) / 60
    if spent >= float(LONG_MINUTES):
        pytest.skip(f"no time: {spent:.0f} of {LONG_MINUTES} minutes are over; script/test --long")


def requires(*programs: str, root: bool = True) -> None:
    """Skip the calling test, loudly, unless it runs as root and finds every program named."""
    if root and os.geteuid() != 0:
        pytest.skip("needs root: run script/test with sudo")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run script/bootstrap")


@contextmanager
def from_mirror() -> Iterator[None]:
    """Around a test's fetch of Debian's packages: skip, loudly, where the mirror does not answer.

    A fetch that fails although the mirror answers is a failure: ours.
    """
    try:
        yield
    except HostError as error:
        if mirror_answers():
            raise
        pytest.skip(f"needs {MIRROR}, which does not answer: {error}")


def mirror_answers(mirror: str = MIRROR) -> bool:
    """Whether apt, with this machine's settings, gets one small file from there."""
    with tempfile.TemporaryDirectory(prefix="pxed-mirror-") as place:
        argv = ["/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root", "download-file"]
        argv += [f"{mirror}/dists/bookworm/InRelease", f"{place}/InRelease"]
        try:
            return subprocess.run(argv, capture_output=True, timeout=120).returncode == 0
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return False


def no_loop_device(place: Path) -> None:
    """Return when none has a file below ``place``: udev may look at one that was given up."""
    until = time.monotonic() + 60
    while any(str(place) in backing for backing in _backing_files()):
        assert time.monotonic() < until, "a loop device is left"
        time.sleep(0.05)


def _backing_files() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # given up meanwhile
            yield path.read_text()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initiators of tests wait a minute for an answer that must come, however busy the machine is.

    A test of what nobody answers says how often to ask.
    """
    # Not before pytest has installed its handler of SIGBUS: aoe_fast has one of its own.
    from aoe_fast.initiator import Initiator

    defaults = Initiator.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "retries", 60)


@dataclass
class Cable:
    """Two namespaces joined by a veth cable: ``eth0`` in each, 10.77.0.1/24 in ``srv``."""

    srv: Namespace
    cli: Namespace

    def settle(self) -> None:
        """Return when frames go both ways: a moment after one end was down.

        What an end sends before a thread of the kernel has seen to it is lost.
        """
        until = time.monotonic() + 60
        for end in (self.srv, self.cli):
            while " state UP " not in (shown := end.run(["ip", "-o", "link"]).stdout) or (
                " qdisc noop " in shown
            ):
                assert time.monotonic() < until, shown
                time.sleep(0.01)


@pytest.fixture
def cable() -> Iterator[Cable]:
    requires("ip", "nsenter", "unshare", "setpriv")
    with Namespace("srv") as srv, Namespace("cli") as cli:
        veth(srv, "eth0", cli, "eth0")
        srv.ip("addr add 10.77.0.1/24 dev eth0")
        yield Cable(srv, cli)
