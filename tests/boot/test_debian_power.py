"""A Debian seat whose plug is pulled while it writes to its root, five times. Long."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from tests.boot.conftest import Room
from tests.boot.debian import eventually, power_on, shut_down

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(2400)]

# Numbered files, each synced with its name before its number is said; beside it much that is not.
WRITER = r"""mkdir -p /srv/w; cd /srv/w; n=$1
while :; do
    seq $n $((n + 2000)) > .new; sync .new; mv .new $n; sync .
    echo "#$n" >> /etc/profile; sync /etc/profile
    echo "synced=$n;" > /dev/ttyS0
    n=$((n + 1))
done
"""
OTHER = "while :; do cp -a /usr/lib/systemd /root/a; mv /root/a /root/b; rm -rf /root/b; done"


def test_what_was_synced_is_there_after_each_power_cut(debian_image: Path) -> None:
    with Lab() as lab:
        room = Room(lab, debian_image, '[class.x86]\nboot = "kernel"\n')
        seat = lab.add_client(memory=1024)
        power_on(seat)
        for line in WRITER.splitlines():
            quoted = line.replace("'", "'\\''")
            seat.shell(f"echo '{quoted}' >> /root/writer", 60)
        seat.shell("sync")
        last = 0
        for cut in range(5):
            seat.shell("dmesg -n 1; rm -rf /root/a /root/b", 60)
            seat.shell(f"(setsid sh -c '{OTHER}' > /dev/null 2>&1 &)")
            # It writes on this console: not before the shell has said its last word.
            write = f"sleep 2; exec sh /root/writer {last + 1}"
            seat.shell(f"(setsid sh -c '{write}' > /dev/null 2>&1 &)")
            seat.wait_for(r"synced=\d+;", 60)
            time.sleep(4 + 2.7 * cut)
            seat.power_off()
            before, last = last, max(map(int, re.findall(r"synced=(\d+);", seat.console())))
            assert last > before
            power_on(seat)
            assert "degraded" not in seat.shell("ls /run/pxed")
            look = f"for n in $(seq {last}); do seq $n $((n + 2000)) | cmp - /srv/w/$n; done"
            assert seat.shell(look, 200, check=False) == ""
            assert f"#{last}\n" in seat.shell("tail -n 2 /etc/profile")
        assert eventually(lambda: "running" in room.stages(seat))
        shut_down(seat)
        layer = room.state / "config/midlayers/525400000001.ext4"
        done = subprocess.run(["e2fsck", "-fn", layer], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
