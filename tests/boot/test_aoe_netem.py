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


# A server's frames go past its interface's queue: this one's is behind a bridge of its guest's.
BEHIND = (
    "modprobe -a veth bridge; ip link add v0 type veth peer name v1; ip link add br0 type bridge;"
    " ip link set v1 master br0; ip link set eth0 master br0;"
    " for i in v0 v1 br0; do ip link set $i mtu 9000 up; done"
)


def lost(guest: Client) -> int:
    """How many frames did not leave this guest."""
    (found,) = re.findall(r"dropped (\d+)", guest.shell("tc -s qdisc show dev eth0"))
    return int(found)


@pytest.mark.parametrize("whose", ["requests", "replies"])
def test_what_was_written_last_is_what_is_read(system: System, tmp_path: Path, whose: str) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(32 << 20))
    with Lab(mtu=9000) as lab:
        server, client = start_guest(lab, system, disk), start_guest(lab, system)
        for guest in (server, client):
            guest.shell("ip link set eth0 mtu 9000; modprobe sch_netem")
        server.shell(BEHIND)
        serve(server, "-i v0", "--export 16.0=/dev/vdb,rw,writeback")
        client.shell("modprobe aoe; until [ -c /dev/etherd/discover ]; do sleep .1; done")
        client.shell(FOUND)
        bad = client if whose == "requests" else server
        bad.shell(f"tc qdisc add dev eth0 root {BAD}")
        client.shell("touch /tmp/rounds")
        client.send(f"\x15{LOAD}\n")
        client.shell(f"until [ $(wc -l < /tmp/rounds) -ge {ROUNDS} ]; do sleep 1; done", 600)
        client.shell("touch /tmp/stop")
        client.wait_for("ALL DONE", 150)
        assert lost(bad) > 0, f"none of the {whose} was lost"
        said = client.console()
        assert "FAILED" not in said.replace("echo FAILED", ""), "a write or its sync failed"
        assert "DIFFERS" not in said.replace("echo DIFFERS", ""), "not what was written was read"
        assert "I/O error" not in client.shell("dmesg")
        # And the server has what its client reads.
        bad.shell("tc qdisc del dev eth0 root")
        for guest in (server, client):
            guest.shell("sync; echo 3 > /proc/sys/vm/drop_caches")
        seen = client.shell(f"md5sum < {DISK}", 150)
        assert server.shell("md5sum < /dev/vdb", 60) == seen, "the server's disk is another one"
