"""The virtual lab leaves nothing behind, however it ends, and its machines do as they are told."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.errors import HostError, UsageError
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.conftest import requires

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def needs() -> None:
    requires("ip", "nsenter", "unshare", "setpriv", "busybox", "qemu-system-x86_64")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as room:
        yield room


def _alive(pid: int) -> bool:
    """Whether the process is there, and not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _inside(spaces: set[str]) -> list[int]:
    """The processes in these namespaces, whose numbers may soon be those of others."""
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if os.readlink(path) in spaces:
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def _all_gone(pids: list[int], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_after_close_everything_is_gone(lab: Lab) -> None:
    client = lab.add_client()
    client.power_on()
    client.monitor("query-status")  # so that it is in its namespace
    assert client.pid is not None
    pids = [client.pid, lab.switch.pid, lab.server.pid]
    spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
    assert os.readlink("/proc/self/ns/net") not in spaces
    pids += _inside(spaces)
    lab.close()
    assert _all_gone(pids)
    assert not lab.directory.exists()
    lab.close()


KILLED = """
import os, time
from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
lab = Lab()
client = lab.add_client()
client.power_on()
client.monitor("query-status")
print(lab.directory, client.pid, lab.switch.pid, lab.server.pid, flush=True)
time.sleep(600)
"""


def test_after_kill_9_nothing_runs_and_the_next_lab_cleans_up() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert owner.stdout is not None
    directory, *numbers = owner.stdout.readline().split()
    pids = [int(number) for number in numbers]
    spaces = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
    assert Path(directory) not in Lab.clean_stale()  # its owner lives
    pids += _inside(spaces)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert _all_gone(pids)
    assert Path(directory).exists()
    Lab.clean_stale()
    assert not Path(directory).exists()


def test_a_directory_without_an_owner_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "pxed-lab-mine").mkdir()
    (tmp_path / "pxed-lab-odd").mkdir()
    (tmp_path / "pxed-lab-odd/owner").write_text("not a pid")
    (tmp_path / "pxed-lab-old").mkdir()
    (tmp_path / "pxed-lab-old/owner").write_text(f"{os.getpid()} 1")  # the number, used again
    assert Lab.clean_stale() == [tmp_path / "pxed-lab-old"]


def test_hosts_reach_each_other_over_the_switch(lab: Lab) -> None:
    other = lab.add_host("other", "10.77.0.2/24")
    seen = other.run(["busybox", "ping", "-c1", "-W30", "10.77.0.1"], check=False)
    assert seen.returncode == 0, seen.stdout
    with pytest.raises(UsageError, match="other"):
        lab.add_host("other")


def test_frames_of_the_labs_mtu_pass() -> None:
    with Lab(mtu=9000) as lab:
        other = lab.add_host("other")
        with lab.server.inside():
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        with other.inside():
            said = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with heard, said:
            heard.settimeout(60)
            heard.bind(("eth0", 0x88B5))
            said.bind(("eth0", 0))
            frame = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + b"x" * 9000
            assert said.send(frame) == len(frame)
            assert heard.recv(10000) == frame
            with pytest.raises(OSError, match="too long"):
                said.send(frame + b"xxxxxxxx")


def test_clients_are_told_apart(lab: Lab) -> None:
    one, two = lab.add_client(), lab.add_client()
    assert one.mac != two.mac
    assert one.name != two.name
    with pytest.raises(UsageError, match="already"):
        lab.add_client(mac=one.mac.upper())


def test_what_was_typed_and_not_read_is_gone_with_the_power(lab: Lab) -> None:
    with lab.add_client() as client:
        client.power_on(plugged=False)
        client.monitor("stop")
        client.send(b"x" * 1000)  # its serial port takes one, or a few
        client.power_off()
        client.power_on()
        typed = os.open(client.directory / "typed", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            os.read(typed, 1)
        os.close(typed)


def test_power_reset_and_cable(lab: Lab) -> None:
    client = lab.add_client()
    with client:
        assert client.pid is None
        client.power_on()
        assert client.running
        with pytest.raises(HostError, match="on already"):
            client.power_on()
        assert client.monitor("query-status")["running"] is True
        client.cable(plugged=False)
        client.cable(plugged=True)
        client.reset()
        with pytest.raises(HostError, match="no_such_command"):
            client.monitor("no_such_command")
        client.power_off()
        assert client.pid is None
        client.power_off()
        with pytest.raises(HostError, match="is off"):
            client.monitor("query-status")
        with pytest.raises(HostError, match="is off"):
            client.send("x")
        client.power_on()
        assert client.running


def test_waiting_ends_in_time_and_says_for_what(lab: Lab) -> None:
    client = lab.add_client()
    client.power_on()
    started = time.monotonic()
    with pytest.raises(HostError, match="no 'never said' on the console"):
        client.wait_for("never said", timeout=0.3)
    assert time.monotonic() - started < 60
    client.power_off()
    with pytest.raises(HostError, match="went off"):
        client.wait_for("never said", timeout=5)


@pytest.fixture
def half(lab: Lab) -> Client:
    """A machine whose console has said half a line."""
    client = lab.add_client()
    client.power_on()
    say(client, "kept lab@1")
    return client


def say(client: Client, text: str) -> None:
    with client.serial_log.open("a") as console:
        console.write(text)


def test_half_a_line_is_no_match(half: Client) -> None:
    with pytest.raises(HostError, match="no 'kept "):
        half.wait_for(r"kept [^\n]*", timeout=0.3)
    assert half.wait_for("kept lab@", timeout=60)[0] == "kept lab@"
    say(half, ".0\n")
    assert half.wait_for(r"kept [^\n]*", timeout=60)[0] == "kept lab@1.0"


def test_a_machine_that_goes_off_has_said_all(half: Client) -> None:
    half.power_off()
    assert half.wait_for(r"kept \S*", timeout=60)[0] == "kept lab@1"


def test_qemus_own_words_come_with_the_error(lab: Lab) -> None:
    client = lab.add_client(extra=("-device", "no-such-device"))
    client.power_on()
    with pytest.raises(HostError, match="no-such-device"):
        client.wait_for("anything", timeout=60)


def test_a_command_too_long_to_type_is_refused(lab: Lab) -> None:
    client = lab.add_client()
    with pytest.raises(HostError, match="at most"):
        client.shell("x" * 5000)


def test_a_machine_asks_for_its_address_over_the_switch(lab: Lab) -> None:
    """The whole way from the network card's ROM to another namespace, without any server."""
    requires("tcpdump")
    caught = lab.directory / "caught"
    with caught.open("wb") as out:
        lab.server.popen(
            ["tcpdump", "-i", "eth0", "-n", "-l", "-c1", "udp dst port 67"], stdout=out
        )
    client = lab.add_client()
    client.power_on()
    until = time.monotonic() + 100
    while f"BOOTP/DHCP, Request from {client.mac}" not in caught.read_text():
        assert time.monotonic() < until, caught.read_text()
        time.sleep(0.05)
