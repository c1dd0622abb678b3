"""Linux's own initiator on a segment that loses, doubles, delays and reorders frames."""

import re
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.test_aoe_guest_server import serve
from tests.boot.test_aoe_linux import DISK, FOUND, LOAD, system
from tests.guest import System, start_guest

__all__ = ["system"]  # a fixture
pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(900)]

BAD = "netem limit 10000 delay 1ms 1ms loss 1% duplicate 1% reorder 25% 50%"
ROUNDS = 12


def lost(guest: Client) -> int:
    """How many frames of this guest's did not leave."""
    (found,) = re.findall(r"dropped (\d+)", guest.shell("tc -s qdisc show dev eth0"))
    return int(found)


def test_what_was_written_last_is_what_is_read(system: System, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(32 << 20))
    with Lab(mtu=9000) as lab:
        server, client = start_guest(lab, system, disk), start_guest(lab, system)
        for guest in (server, client):
            guest.shell("ip link set eth0 mtu 9000; modprobe sch_netem")
        serve(server, "-i eth0", "--export 16.0=/dev/vdb,rw,writeback")
        client.shell("modprobe aoe; until [ -c /dev/etherd/discover ]; do sleep .1; done")
        client.shell(FOUND)
        # At the client alone: the server's frames go past its interface's queue.
        client.shell(f"tc qdisc add dev eth0 root {BAD}")
        client.shell("touch /tmp/rounds")
        client.send(f"\x15{LOAD}\n")
        client.shell(f"until [ $(wc -l < /tmp/rounds) -ge {ROUNDS} ]; do sleep 1; done", 600)
        client.shell("touch /tmp/stop")
        client.wait_for("ALL DONE", 150)
        assert lost(client) > 0
        said = client.console()
        assert "FAILED" not in said.replace("echo FAILED", "")
        assert "DIFFERS" not in said.replace("echo DIFFERS", "")
        assert "I/O error" not in client.shell("dmesg")
        # And the server has what its client reads.
        client.shell("tc qdisc del dev eth0 root")
        for guest in (server, client):
            guest.shell("sync; echo 3 > /proc/sys/vm/drop_caches")
        seen = client.shell(f"md5sum < {DISK}", 150)
        assert server.shell("md5sum < /dev/vdb", 60) == seen
