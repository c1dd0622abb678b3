"""Two block servers on one interface of one machine: no frame tells them of each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from aoe_fast.presence import Presence, neighbours
from tests.aoe_peer import eventually
from tests.conftest import Cable
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_aoe_cli_hot import ONE, Start, export, image, refused, start

pytestmark = pytest.mark.netns
__all__ = ["start"]

TWO = "52:54:00:00:bb:02"
_SQUAT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0aoe-fast.%s.1.%d" % (sys.argv[1], os.getpid()))
listener.listen(9)
print("listening", flush=True)
while True:
    peer, _ = listener.accept()
    peer.sendall(b'{"who": "aoe-fast", "serves": [[16, 0, null]]}')
    peer.close()
"""
_ASK = """
import os, socket
os.setgid(65534)
os.setuid(65534)
for line in open("/proc/self/net/unix"):
    if "@aoe-fast." in line:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect("\\0" + line.split("@")[1].strip())
            print(peer.recv(100))
"""


def test_a_second_server_with_a_control_socket_of_its_own(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    start(cable.srv, "--export", f"16.0={disk}")
    for text in (f"16.0={disk}", f"16.0={disk},mac={ONE}"):
        says = refused(cable.srv, "--export", text)
        assert "16.0 is served on eth0 by another aoe-fast of this machine" in says
    start(cable.srv, "--export", f"16.1={disk}", name="other")


def test_machines_of_their_own_may_have_one_address(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    start(cable.srv, "--export", f"16.3={disk},mac={ONE}", "--export", f"16.1={disk}")
    assert "16.3 is served" in refused(cable.srv, "--export", f"16.3={disk},mac={ONE}")
    start(cable.srv, "--export", f"16.3={disk},mac={TWO}", name="other")


def test_what_is_added_later(start: Start, cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    start(cable.srv, "--export", f"16.1={disk}", name="other")
    start(cable.srv, "--export", f"16.0={disk}")
    added = export(tmp_path, "add", f"16.1={disk}")
    assert added.returncode == 1
    assert "16.1 is served on eth0 by another aoe-fast of this machine" in added.stderr
    assert export(tmp_path, "add", f"16.2={disk}").returncode == 0


def test_one_that_has_ended_is_no_obstacle(start: Start, cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    first = start(cable.srv, "--export", f"16.0={disk}")
    first.kill()
    first.wait()
    start(cable.srv, "--export", f"16.0={disk}", name="other")


def test_two_that_start_at_once_do_not_both_give_way(cable: Cable, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    both = [
        cable.srv.popen(
            [sys.executable, "-m", "aoe_fast.cli", "serve", "-i", "eth0", "--control",
             str(tmp_path / str(number)), "--export", f"16.0={disk}"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [(each.stdout.readline() if each.stdout else "") for each in both]
        assert sorted("ready" in line for line in said) == [False, True]
    finally:
        for each in both:
            each.kill()
            each.communicate()


def test_who_looked_before_the_other_could_be_found_began_earlier(cable: Cable) -> None:
    """So the other one finds it, and gives way, whatever held it up before it listened."""
    with cable.srv.inside():
        slow, quick = Presence("slow", dict), Presence("quick", dict)
        try:
            quick.listen("eth0")
            assert not list(neighbours("eth0", quick.since))
            slow.listen("eth0")
            assert quick.since < slow.since
        finally:
            slow.close()
            quick.close()


def test_pxed_beside_aoe_fast(start: Start, serve: Serve, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    first = start(serve.cable.srv, "--export", f"16.1={disk}")
    serve.refuses(GOOD, 2, "16.1 is served on eth0 by another aoe-fast", "shelf", "force")
    first.kill()
    first.wait()
    start(serve.cable.srv, "--export", f"7.0={disk}", name="other")
    serve.start()
    for slot in (0, 3):  # and what its next client will be given
        says = refused(serve.cable.srv, "--export", f"16.{slot}={disk}")
        assert f"16.{slot} is served on eth0 by another pxed of this machine" in says


def test_a_socket_of_just_anybody_is_not_believed(
    start: Start, cable: Cable, tmp_path: Path
) -> None:
    """A local user without rights can make such a socket: it stops nobody, and learns nothing."""
    disk = image(tmp_path / "a.img")
    index = cable.srv.run(["cat", "/sys/class/net/eth0/ifindex"]).stdout.strip()
    squatter = cable.srv.popen(
        [sys.executable, "-c", _SQUAT, index], stdout=subprocess.PIPE, text=True
    )
    try:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == "listening\n"
        start(cable.srv, "--export", f"16.0={disk}")
        squatter.kill()
        squatter.wait()
        asked = cable.srv.run([sys.executable, "-c", _ASK])
        assert asked.stdout == "b''\n", asked.stderr
    finally:
        squatter.kill()
        squatter.communicate()


def test_what_comes_later_is_looked_for(
    start: Start, cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aoe_fast.presence.LOOK_S", 0.2)
    found: list[str] = []

    def look() -> None:
        found.extend(each.who for each in neighbours("eth0"))
        raise RuntimeError("a fault of ours ends nothing")

    with cable.srv.inside():
        presence = Presence("test", dict, look)
        presence.listen("eth0")
        presence.start()
    try:
        assert not found
        start(cable.srv, "--export", f"16.0={image(tmp_path / 'a.img')}")
        assert eventually(lambda: found.count("aoe-fast") > 1)
    finally:
        presence.close()
        presence.close()
