"""``pxed demo`` as a person runs it, and that nothing is left of it, however it ends."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from tests.boot.conftest import PROGRAMS
from tests.conftest import WITHOUT_PRIVILEGE, requires

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

DEMO = [sys.executable, "-m", "pxed", "demo"]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where this demo, and no other lab on this machine, puts its directory."""
    requires(*PROGRAMS)
    Lab.clean_stale()
    return tmp_path


def start(temporary: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*DEMO, *options],
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def offspring(pid: int) -> set[int]:
    """Processes that descend from ``pid``."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int], limit: float = 60) -> bool:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        alive = [p for p in pids if Path(f"/proc/{p}").exists() and not _zombie(p)]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until_booting(demo: "subprocess.Popen[str]") -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "first AoE read" in line:
            return
    pytest.fail("the demo ended before its client booted")


def test_a_bios_client_runs_and_json_says_when(temporary: Path) -> None:
    demo = start(temporary, "--json")
    out, err = demo.communicate(timeout=350)
    assert demo.returncode == 0, err
    said = json.loads(out)
    (client,) = said["clients"]
    assert client["running"]
    assert client["stages"]["DISCOVER"] < client["stages"]["root mounted"]
    assert client["stages"]["root mounted"] < client["power_on_to_running_s"]
    assert said["aoe"]["read_bytes"] > 1 << 20
    assert said["aoe"]["drops"] == 0
    assert list(temporary.iterdir()) == []


UNPLUGGED = """
import time
from pxed.cli import main
from pxed.lab.qemu import Client
power_on = Client.power_on
def unplugged(self):
    power_on(self, plugged=False)
    while not any(map(str.isalnum, self.screen())):
        time.sleep(0.1)
Client.power_on = unplugged
main()
"""


def test_of_a_client_that_does_not_run_it_shows_the_last_words(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPLUGGED, "demo", "--timeout", "5"],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True, text=True, check=False, timeout=350,
    )  # fmt: skip
    assert done.returncode == 1
    assert "not every client came to run" in done.stderr
    out = done.stdout
    wrote = out.partition("the last lines that it wrote:\n")[2].partition("\n\n")[0]
    assert wrote.strip()
    assert "(nothing)" not in wrote


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_is_left(temporary: Path, number: signal.Signals) -> None:
    demo = start(temporary)
    until_booting(demo)
    children = offspring(demo.pid)
    assert len(children) >= 4  # two namespaces, the server, the client
    demo.send_signal(number)
    _, err = demo.communicate(timeout=100)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert gone(children)
    assert list(temporary.iterdir()) == []


def test_kill_9_leaves_no_process_and_a_directory_that_the_next_lab_removes(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = start(temporary)
    until_booting(demo)
    children = offspring(demo.pid)
    demo.kill()
    demo.communicate(timeout=100)
    assert gone(children)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    Lab.clean_stale()
    assert list(temporary.iterdir()) == []


def test_keep_gives_the_clients_console_until_the_escape_key(temporary: Path) -> None:
    master, terminal = pty.openpty()
    demo = subprocess.Popen(
        [*DEMO, "--keep"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        more = read_until(master, b"Ctrl-] ends the lab")
        more = read_until(master, b"# ", more)
        os.write(master, b"echo typed-$((6 * 7)) > /config/typed; cat /config/typed\n")
        read_until(master, b"typed-42", more)
        os.write(master, b"\x1d")
        assert demo.wait(100) == 0
    finally:
        demo.kill()
        demo.wait()
        os.close(master)
    assert list(temporary.iterdir()) == []


def read_until(fd: int, wanted: bytes, said: bytes = b"", limit: float = 200) -> bytes:
    """Read on after ``said`` until there is ``wanted``; what follows it."""
    deadline = time.monotonic() + limit
    while wanted not in said:
        ready, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"no {wanted!r} in {said[-500:]!r}"
        said += os.read(fd, 4096)
    return said.partition(wanted)[2]


def test_without_root_it_says_so(temporary: Path) -> None:
    done = subprocess.run(
        [*WITHOUT_PRIVILEGE, *DEMO],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(temporary.iterdir()) == []


def test_the_firmware_must_be_one_that_exists() -> None:
    done = subprocess.run(
        [*DEMO, "--firmware", "coreboot"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "bios" in done.stderr
