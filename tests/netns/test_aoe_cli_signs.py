"""What ``aoe-fast serve`` and ``stat`` say of links, files that changed, and a vblade left running.

Each of these is served without a word otherwise, and looks like a fault of the server.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.aoe_peer import eventually
from tests.conftest import Cable
from tests.netns.site import vblade
from tests.netns.test_aoe_cli import AOE_FAST, ONE, TWO, Serve, client, image, run, serve, stopped

__all__ = ["serve"]  # a fixture
pytestmark = pytest.mark.netns


def stat(tmp_path: Path) -> str:
    done = run("stat", "--control", str(tmp_path / "ctl"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(tmp_path: Path) -> str:
    return run("export", "list", "--control", str(tmp_path / "ctl")).stdout


@pytest.mark.parametrize(
    ("end", "says"), [("srv", "eth0 is down: nothing is heard"), ("cli", "eth0 has no link: ")]
)
def test_an_interface_without_a_link(
    serve: Serve, cable: Cable, tmp_path: Path, end: str, says: str
) -> None:
    """It is served from then on when it has one, and serve and stat say what is missing."""
    side = cable.srv if end == "srv" else cable.cli
    side.ip("link set eth0 down")
    process = serve("--export", f"16.0={image(tmp_path / 'a.img', 4096)}")
    assert says in stat(tmp_path)
    side.ip("link set eth0 up")
    cable.settle()
    assert says not in stat(tmp_path)
    assert eventually(lambda: "16.0" in client(cable, "discover", "-i", "eth0").stdout)
    status, said = stopped(process)
    assert status == 0
    assert said.startswith(f"aoe-fast: {says}")
    assert said.count("\n") == 1, said


def test_an_mtu_that_is_too_small_is_an_interfaces(cable: Cable, tmp_path: Path) -> None:
    cable.srv.ip("link set eth0 mtu 500")
    disk = image(tmp_path / "a.img", 4096)
    done = cable.srv.run(
        [*AOE_FAST, "serve", "-i", "eth0", "--control", "ctl", "--export", f"16.0={disk}"],
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "eth0: MTU 500 is too small" in done.stderr


def test_a_file_that_became_shorter_or_longer(serve: Serve, tmp_path: Path) -> None:
    shorter, longer, part = (image(tmp_path / name, 65536) for name in ("s", "l", "p"))
    serve("--export", f"16.0={shorter}", "--export", f"16.1={longer}",
          "--export", f"16.2={part},length=4K")  # fmt: skip
    assert "now" not in stat(tmp_path) + listed(tmp_path)
    os.truncate(shorter, 4096)
    os.truncate(longer, 1 << 20)
    os.truncate(part, 8192)  # which is more than is served
    said = stat(tmp_path)
    assert f"16.0: {shorter} is shorter now: 4096 bytes: what is beyond them is an error" in said
    assert f"16.1: {longer} is longer now: 1048576 bytes, of which 65536 are served" in said
    assert "16.2: " not in said
    shown = listed(tmp_path)
    assert "file shorter now: served as it was" in shown
    assert "file longer now: served as it was" in shown
    assert shown.count(" now: ") == 2


def started(cable: Cable, tmp_path: Path, export: str) -> tuple[str, str]:
    """(what it says on stdout first, on stderr) of ``serve`` of this beside what runs already."""
    words = ["serve", "-i", "eth0", "--control", str(tmp_path / "ctl"), "--export", export]
    process = cable.srv.popen(
        [*AOE_FAST, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    status, said = stopped(process) if ready else (process.wait(), process.communicate()[1])
    assert status == (0 if ready else 2), said
    return ready, said


def test_a_vblade_of_this_machine_at_the_same_address(cable: Cable, tmp_path: Path) -> None:
    """Nothing of it is ever heard here: it is found by its command line."""
    disk = image(tmp_path / "a.img", 4096)
    process = vblade(cable.srv, 16, 0, disk, "-r")
    masked = vblade(cable.srv, 16, 1, disk, "-m", ONE.replace(":", ""))
    try:
        ready, said = started(cable, tmp_path, f"16.0={disk}")
        assert not ready, "served beside a vblade that has the same address"
        who = f"another server, vblade (process {process.pid}),"
        assert f"16.0 is served on eth0 by {who} of this machine: stop that one" in said
        assert said.count("\n") == 1
        ready, said = started(cable, tmp_path, f"16.1={disk},mac={ONE}")
        assert not ready, "served to a machine that vblade's -m names, too"
        for other in (f"16.2={disk}", f"16.1={disk},mac={TWO}"):
            ready, said = started(cable, tmp_path, other)
            assert ready, said
    finally:
        for each in (process, masked):
            each.kill()
            each.wait()
    ready, said = started(cable, tmp_path, f"16.0={disk}")
    assert ready, said


def test_a_vblade_of_another_machine_is_not_ones_own(cable: Cable, tmp_path: Path) -> None:
    """Its process is seen here, in another network namespace; on the wire it hides from us."""
    disk = image(tmp_path / "a.img", 4096)
    process = vblade(cable.cli, 17, 0, disk, "-m", ONE.replace(":", ""))
    try:
        ready, said = started(cable, tmp_path, f"17.0={disk},mac={ONE}")
        assert ready, said
    finally:
        process.kill()
        process.wait()
