"""What the running servers may still do: two capabilities, no way back, and no root."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_fast.initiator import Initiator
from pxed import ext4
from tests.aoe_peer import PATIENCE, eventually
from tests.conftest import WITHOUT_PRIVILEGE, Cable
from tests.netns.conftest import GOOD, Serve

pytestmark = pytest.mark.netns

RAW, BIND, ADMIN, OVERRIDE = 1 << 13, 1 << 10, 1 << 12, 1 << 1
USER = "nobody"
AS_USER = GOOD + f'[security]\nuser = "{USER}"\n'
SEAT = "02:00:00:00:00:11"


def status(pid: int) -> list[dict[str, str]]:
    """/proc/PID/status of every thread that is still there."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (task / "status").read_text().splitlines()
            found.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    return found


def capabilities(pid: int) -> set[tuple[int, int, int]]:
    """Effective, permitted and bounding sets, of all threads."""
    return {
        (int(each["CapEff"], 16), int(each["CapPrm"], 16), int(each["CapBnd"], 16))
        for each in status(pid)
    }


@pytest.fixture
def open_state(state: Path) -> Iterator[Path]:
    """The state directory at a place that every user can reach."""
    where = Path(tempfile.mkdtemp(prefix="pxed-state-"))
    try:
        where.chmod(0o755)
        shutil.move(state, where / "state")
        for path in (Path(sys.prefix), Path(__file__).parents[2]):
            done = subprocess.run(["setpriv", "--reuid", USER, "--clear-groups", "--", "ls",
                                   str(path)], capture_output=True, check=False)  # fmt: skip
            if done.returncode:
                pytest.skip(f"{path} cannot be read by user {USER}: use another checkout")
        yield where / "state"
    finally:
        shutil.rmtree(where)


@pytest.fixture
def served(cable: Cable, open_state: Path) -> Serve:
    return Serve(cable, open_state)


def test_root_keeps_two_capabilities_in_every_thread(serve: Serve) -> None:
    process = serve.start()
    assert capabilities(process.pid) == {(RAW | BIND, RAW | BIND, RAW | BIND)}
    assert {each["NoNewPrivs"] for each in status(process.pid)} == {"1"}


def nices(pid: int) -> dict[int, int]:
    """The nice value of each of its threads."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            said = (task / "stat").read_text().rpartition(")")[2].split()[16]
            found[int(task.name)] = int(said)
    return found


@pytest.fixture
def may_be_nice() -> None:
    if not capabilities(os.getpid()).pop()[0] >> 23 & 1:
        pytest.skip("needs CAP_SYS_NICE")


@pytest.mark.usefixtures("may_be_nice")
def test_it_comes_before_what_else_this_machine_does(served: Serve) -> None:
    """Also as a user who could not ask for that any more; its event loop after what moves data."""
    pid = served.start(AS_USER).pid

    def in_their_places() -> bool:
        found = nices(pid)
        others = [nice for thread, nice in found.items() if thread != pid]
        # At -10 those of AoE, TFTP and HTTP.
        return found[pid] == -8 and {*others} <= {-10, -8} and others.count(-10) >= 3

    assert eventually(in_their_places), nices(pid)


@pytest.mark.usefixtures("may_be_nice")
@pytest.mark.parametrize("own", [True, False])
def test_so_does_its_session_where_it_is_its_own(serve: Serve, own: bool) -> None:
    """Linux shares CPUs among sessions; a shell's session is not the server's to change."""
    session = Path("/proc/self/autogroup")
    if not session.exists() or not session.read_text():
        pytest.skip("this kernel has no sched_autogroup")
    before = session.read_text()
    command = ["setsid"] * own + serve.command(GOOD)
    process = serve.cable.srv.popen(command, stderr=subprocess.DEVNULL)
    assert eventually((serve.state / "control.sock").exists)
    shown = Path(f"/proc/{process.pid}/autogroup").read_text()
    assert shown.endswith("nice -10\n") == own
    assert session.read_text() == before


def test_a_nice_value_that_somebody_chose_stays(serve: Serve) -> None:
    command = ["nice", "-n", "5", *serve.command(GOOD)]
    process = serve.cable.srv.popen(command, stderr=subprocess.DEVNULL)
    assert eventually((serve.state / "control.sock").exists)
    assert set(nices(process.pid).values()) == {5}


def test_as_its_own_user(served: Serve) -> None:
    process = served.start(AS_USER)
    user = pwd.getpwnam(USER)
    assert {each["Uid"].split()[0] for each in status(process.pid)} == {str(user.pw_uid)}
    assert capabilities(process.pid) == {(RAW | BIND, RAW | BIND, RAW | BIND)}
    assert "0" not in {g for each in status(process.pid) for g in each["Groups"].split()}
    owners = set()
    for path in served.state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # of what is being made some files go again
            owners.add(path.stat().st_uid)
    assert owners == {user.pw_uid}


def test_its_own_user_makes_a_midlayer_and_mends_it(served: Serve) -> None:
    process = served.start(AS_USER)
    path = served.state / "config" / "midlayers" / "020000000011.ext4"

    def discover() -> None:
        served.cable.cli.run(
            ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "50", "-T", "1", "-s", "/bin/true",
             "-V", "PXEClient:Arch:00000:UNDI:002001"], check=False,
        )  # fmt: skip

    served.cable.cli.ip(f"link set eth0 address {SEAT}")
    discover()
    assert eventually(path.exists)
    assert path.stat().st_uid == pwd.getpwnam(USER).pw_uid
    # As after a crash of the machine that uses it.
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 0", str(path)], check=True)
    assert not ext4.look(path).clean
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    for database in served.state.glob("pxed.db*"):
        database.unlink()
    served.start(AS_USER)
    discover()
    assert eventually(lambda: ext4.look(path).clean)


def test_the_helper_widens_buffers_and_can_do_nothing_else(serve: Serve) -> None:
    process = serve.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    # For a moment there may be one that makes a file system besides.
    found: list[str] = []

    def alone() -> bool:
        found[:] = children.read_text().split()
        return len(found) == 1

    assert eventually(alone)
    (child,) = found
    assert capabilities(int(child)) == {(ADMIN, ADMIN, ADMIN)}
    shown = serve.cable.srv.run(["ss", "-ulnm", "sport = 67"]).stdout
    assert "rb8388608" in shown  # the kernel counts its own part: twice what was asked for
    process.kill()
    process.wait()
    gone = Path(f"/proc/{child}")
    assert eventually(lambda: not gone.exists()), "the helper outlives its server"


def test_without_the_helper_a_buffer_is_what_the_system_allows(cable: Cable) -> None:
    code = (
        "import socket; from aoe_fast.buffers import widen\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "widen(s, socket.SO_RCVBUF, 1 << 22)\n"
        "print(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))"
    )
    done = cable.srv.run([*WITHOUT_PRIVILEGE, sys.executable, "-c", code])
    limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert int(done.stdout) == 2 * min(limit, 1 << 22)


def test_a_unit_with_a_user_needs_no_root(served: Serve) -> None:
    """As systemd starts it: the unit's user, its two capabilities as ambient ones."""
    user = pwd.getpwnam(USER)
    for path in (served.state, *served.state.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    served.config = served.state.parent / "pxed.toml"
    command = served.command(GOOD)
    process = served.cable.srv.popen(
        ["setpriv", "--reuid", USER, "--regid", str(user.pw_gid), "--clear-groups",
         "--bounding-set", "-all,+net_raw,+net_bind_service",
         "--inh-caps", "-all,+net_raw,+net_bind_service",
         "--ambient-caps", "-all,+net_raw,+net_bind_service", "--", *command],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    while not (served.state / "control.sock").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.02)
    assert capabilities(process.pid) == {(RAW | BIND, RAW | BIND, RAW | BIND)}
    assert {each["CapAmb"] for each in status(process.pid)} == {"0" * 16}


def test_a_user_who_does_not_exist(serve: Serve) -> None:
    serve.refuses(GOOD + '[security]\nuser = "nosuchuser"', 2, "nosuchuser", "useradd")


def test_root_is_no_user_to_become(serve: Serve) -> None:
    serve.refuses(GOOD + '[security]\nuser = "root"', 2, "root", "fewer rights")


def test_a_state_directory_that_the_user_cannot_enter(serve: Serve) -> None:
    before = serve.state.stat().st_uid
    serve.state.parent.chmod(0o700)
    serve.refuses(AS_USER, 1, str(serve.state.parent), USER)
    assert serve.state.stat().st_uid == before


def test_somebody_elses_state_directory_stays_usable(serve: Serve) -> None:
    for path in (serve.state, *serve.state.rglob("*")):
        os.chown(path, pwd.getpwnam("daemon").pw_uid, -1)
    process = serve.start()
    keeps = RAW | BIND | OVERRIDE
    assert capabilities(process.pid) == {(keeps, keeps, keeps)}


def test_the_block_server_keeps_raw_sockets_alone(cable: Cable, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    control = tmp_path / "control"
    process = cable.srv.popen(
        [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--control", str(control),
         "--export", f"7.0={disk},rw", "--user", USER], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert b"ready on eth0" in process.stdout.readline()
    assert capabilities(process.pid) == {(RAW, RAW, RAW)}
    assert {e["Uid"].split()[0] for e in status(process.pid)} == {str(pwd.getpwnam(USER).pw_uid)}
    with cable.cli.inside(), Initiator("eth0") as client:
        client.write(7, 0, 0, b"x" * 512)
        assert client.read(7, 0, 0, 1) == b"x" * 512
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read().decode()
    assert process.wait(PATIENCE) == 0
    assert "stopping: answering" in said
    assert "all synced" in said


def test_ready_watchdog_and_stop_are_told(serve: Serve, tmp_path: Path) -> None:
    # A queue that is full of the watchdog's words is waited for, however long we do not read.
    patient = "from aoe_fast import notify; notify._PATIENCE_S = 300.0; "
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        process = serve.cable.srv.popen(
            serve.command(GOOD, patient), stderr=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"),
                              "WATCHDOG_USEC": "400000"},
        )  # fmt: skip
        told = [manager.recv(4096) for _ in range(4)]
        assert sum(each.startswith(b"READY=1\nSTATUS=serving eth0 (10.77.0.1/24)\n")
                   for each in told) == 1  # fmt: skip
        assert told.count(b"WATCHDOG=1") == 3
        process.send_signal(signal.SIGHUP)
        while not manager.recv(4096).startswith(b"RELOADING=1"):
            pass
        process.send_signal(signal.SIGTERM)
        while not manager.recv(4096).startswith(b"STOPPING=1"):
            pass
        assert process.wait(PATIENCE) == 0


def test_what_the_user_cannot_write_is_found_at_the_start(served: Serve) -> None:
    folder = served.state / "config" / "midlayers"
    folder.mkdir(parents=True)
    first = served.start(AS_USER)
    first.kill()
    first.wait(PATIENCE)
    (served.state / "control.sock").unlink()
    os.chown(folder, 0, 0)
    served.refuses(AS_USER, 1, str(folder), USER)


@pytest.mark.parametrize("case", ["folder", "file"])
def test_the_block_servers_state_must_be_writable_for_its_user(
    cable: Cable, tmp_path: Path, open_state: Path, case: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    folder = open_state.parent / "kept"
    folder.mkdir()
    if case == "file":  # in a folder like /tmp, where only its owner may replace it
        folder.chmod(0o1777)
        (folder / "aoe.json").write_text('{"version": 1, "exports": {}}')
    command = [
        sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--control",
        str(tmp_path / "control"), "--export", f"7.0={disk},rw", "--user", USER,
        "--state", str(folder / "aoe.json"),
    ]  # fmt: skip
    done = cable.srv.run(command, check=False, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(folder) in done.stderr
    assert USER in done.stderr
    user = pwd.getpwnam(USER)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    process = cable.srv.popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"ready on eth0" in process.stdout.readline()
    process.terminate()
    assert process.wait(PATIENCE) == 0
