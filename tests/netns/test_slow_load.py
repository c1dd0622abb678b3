"""A kernel over a slow link takes longer than any silence that ends a boot."""

import json
import os
import socket
import time
from typing import Any

import pytest

from pxed.control import ControlClient
from tests.aoe_peer import eventually
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_kill import Room, machine
from tests.netns.test_mode import running, serve

__all__ = ["serve"]  # the fixture
pytestmark = pytest.mark.netns
SILENT = 2.0
IMPATIENT = f"""
import os
from pxed import clients, lives, why
def tick(self, now, before=lives.Lives.tick):
    if os.path.exists("FLAG"):
        clients.SILENT_BOOT = why.NO_FILE = why.NO_KERNEL = {SILENT}
        why.STOPPED = 0.5
    before(self, now)
lives.Lives.tick = tick
"""
IPXE = {"USER_CLASS": b"iPXE", "IPXE": bytes.fromhex("120101130101180101")}
LONG = 256 << 20  # more than all buffers on the way


def client(control: ControlClient) -> Any:
    return control.get(f"/v1/clients/{machine(1)}")


def test_a_boot_whose_kernel_takes_long_by_http_goes_on(serve: Serve) -> None:
    folder = serve.state / "images/lab/1"
    data = json.loads((folder / "manifest.json").read_text())
    data["kernel"] = {"vmlinuz": "vmlinuz", "initrd": "initrd", "cmdline": "quiet"}
    (folder / "manifest.json").write_text(json.dumps(data))
    (folder / "initrd").write_bytes(bytes(4096))
    (folder / "vmlinuz").touch()
    os.truncate(folder / "vmlinuz", LONG)
    host = serve.cable.cli
    text = f'{GOOD}[class.x86]\nboot = "kernel"\n'
    flag = serve.state / "impatient"
    with running(serve, text, before=IMPATIENT.replace("FLAG", str(flag))) as control:
        host.ip("addr flush dev eth0")
        room = Room(host)
        host.ip(f"addr add {room.boot(machine(1), **IPXE)}/24 dev eth0")
        room.close()
        with host.inside():
            tcp = socket.create_connection(("10.77.0.1", 80))
        tcp.sendall(b"GET /image/lab@1/vmlinuz HTTP/1.1\r\nHost: x\r\n\r\n")

        def kinds() -> list[str]:
            return [e["kind"] for e in control.follow("/v1/events")]

        assert eventually(lambda: "http-read" in kinds(), 60)
        flag.touch()  # not before: what comes first may take its time here
        silent = client(control)["last_seen"] + 3 * SILENT
        while time.time() < silent:
            tcp.recv(4096)  # slowly, but it goes on
            time.sleep(0.2)
        assert (client(control)["state"], client(control)["why"]) == ("booting", "")
        tcp.close()
        assert eventually(lambda: client(control)["state"] == "failed", 60)
        assert client(control)["why"].startswith("loading /image/lab@1/vmlinuz stopped: ")
