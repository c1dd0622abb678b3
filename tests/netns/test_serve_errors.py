"""``pxed serve`` with something wrong: one line that says what and what to do, and nothing left."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import WITHOUT_PRIVILEGE, requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.site import slowness, vblade

pytestmark = pytest.mark.netns


def test_an_interface_that_does_not_exist(serve: Serve) -> None:
    serve.refuses('interface = "eth9"\nstate_dir = "STATE"', 2, "eth9", "eth0")


def test_an_interface_without_an_address(serve: Serve) -> None:
    serve.cable.srv.ip("addr flush dev eth0")
    serve.refuses(GOOD, 1, "eth0", "no IPv4 address")


def test_the_loopback_interface(serve: Serve) -> None:
    serve.refuses('interface = "lo"\nstate_dir = "STATE"', 2, "lo", "Ethernet")


def kind_of(port: int) -> socket.SocketKind:
    return socket.SOCK_STREAM if port == 80 else socket.SOCK_DGRAM


@pytest.mark.parametrize("port", [67, 69, 80])
def test_a_port_in_use(serve: Serve, port: int) -> None:
    with (
        serve.cable.srv.inside(),
        socket.socket(socket.AF_INET, kind_of(port)) as taken,
    ):
        taken.bind(("", port))
        if port == 80:
            taken.listen()
        serve.refuses(GOOD, 1, f"{port}", "in use", "stop it")


def test_a_missing_image(serve: Serve) -> None:
    serve.refuses(GOOD + '[class.x86]\nimage = "other"', 2, "other", "lab@1")


def test_no_image_at_all(serve: Serve) -> None:
    shutil.rmtree(serve.state / "images")
    serve.refuses(GOOD, 2, "there is none", "pxed image build minimal")


def test_another_target_at_our_address(serve: Serve) -> None:
    requires("vblade")
    disk = serve.state.parent / "disk"
    disk.write_bytes(bytes(1 << 20))
    vblade(serve.cable.cli, 16, 1, disk)
    with slowness(serve.cable.cli) as slow:
        serve.refuses(GOOD, 2, "16.1 is served on eth0 by", "shelf", "force", excused=slow)


def test_more_clients_than_any_ring_holds(serve: Serve) -> None:
    text = GOOD + "[aoe]\nbufcnt = 1024\nmax_clients = 65536"
    serve.refuses(text, 2, "[aoe]", "65536 clients", "lower bufcnt")


def test_a_broken_configuration(serve: Serve) -> None:
    serve.refuses("interface = ", 2, "pxed.toml", "not valid TOML")


def test_a_range_outside_the_subnet(serve: Serve) -> None:
    serve.refuses(
        GOOD + '[dhcp]\nrange = "192.168.1.10-192.168.1.20"', 2, "192.168.1.10", "10.77.0.0/24"
    )


def test_kernel_boot_from_an_image_without_a_kernel(serve: Serve) -> None:
    serve.refuses(GOOD + '[class.x86]\nboot = "kernel"', 2, "lab@1", "no kernel", "san")


def test_provision_without_a_tfm_device(serve: Serve) -> None:
    serve.refuses(GOOD + '[class.x86]\nmode = "provision"', 2, "tfm")


def test_no_directory_with_ipxe(serve: Serve) -> None:
    serve.refuses(GOOD + '[tftp]\nroot = "/nowhere"', 2, "/nowhere", "ipxe")


def test_a_state_directory_that_cannot_be_made(serve: Serve) -> None:
    (serve.state / "config").write_text("a file, not a directory")
    serve.refuses(GOOD, 1, "config/midlayers", "state_dir")


def test_without_root(serve: Serve) -> None:
    done = serve.cable.srv.run([*WITHOUT_PRIVILEGE, *serve.command(GOOD)], check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "root" in done.stderr


def test_a_second_server_on_the_same_state(
    serve: Serve, running: "subprocess.Popen[bytes]"
) -> None:
    done = serve.cable.srv.run(serve.command(GOOD), check=False)
    assert done.returncode == 1
    assert "another pxed" in done.stderr
    assert running.poll() is None


def test_malformed_packets_of_every_protocol_are_counted_and_stop_nothing(
    serve: Serve, running: "subprocess.Popen[bytes]"
) -> None:
    serve.cable.cli.ip("addr add 10.77.0.2/24 dev eth0")
    with serve.cable.cli.inside():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for port in (67, 69):
                for data in (b"", b"\0", b"\xff" * 300, bytes(700), bytes(range(256)) * 5):
                    udp.sendto(data, ("10.77.0.1", port))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for data in (b"", b"\x10", b"\xff" * 40, bytes(1400)):
                raw.send(b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xa2" + data)
            raw.send(bytes.fromhex("333300000002020000000001") + b"\x86\xdd" + bytes(60))
    deadline = time.monotonic() + 60
    while True:
        status = serve.ask("status")
        counted = status["dhcp"].get("malformed", 0), status["tftp"].get("malformed", 0)
        if all(counted) and status["aoe"]["ignored"]:
            break
        assert time.monotonic() < deadline, json.dumps(status)
        time.sleep(0.05)
    assert running.poll() is None


def test_sigterm_ends_it_with_status_0(serve: Serve, running: "subprocess.Popen[bytes]") -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    assert not (serve.state / "control.sock").exists()


def test_status_and_client_list_speak_to_people(
    serve: Serve, running: "subprocess.Popen[bytes]"
) -> None:
    assert running.poll() is None
    command = [sys.executable, "-m", "pxed"]
    option = ["--state-dir", str(serve.state)]
    shown = subprocess.run(
        [*command, "status", *option], capture_output=True, text=True, check=True
    )
    assert "eth0" in shown.stdout
    assert "lab@1" in shown.stdout
    listed = subprocess.run(
        [*command, "client", "list", *option], capture_output=True, text=True, check=True
    )
    assert "no client" in listed.stdout


_NO_THREAD = """
import threading
really = threading.Thread.start
def start(self):
    if self.name.startswith(NAME):
        raise RuntimeError("can't start new thread")
    really(self)
threading.Thread.start = start
"""


@pytest.mark.parametrize(
    "name",
    [
        "aoe-care", "aoe-presence", "aoe-side", "http-file", "listing", "manage", "mend",
        "midlayer", "pxed-http", "pxed-netlink", "store", "tftp-mover",
    ],
)  # fmt: skip
def test_no_room_for_a_thread(serve: Serve, name: str) -> None:
    text = _NO_THREAD.replace("NAME", repr(name))
    serve.refuses(GOOD, 1, "no more threads", "raise the limit", before=text)


@pytest.mark.parametrize("most", [12, 20, 40, 128])
def test_hardly_any_descriptors(serve: Serve, most: int) -> None:
    """Whatever failed first would be what is named, the database for one."""
    text = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most})); "
    serve.refuses(GOOD, 1, f"at most {most} files", "raise the limit", before=text)
