"""The server inside what its unit allows: system calls, no writable code, its user's rights."""

import grp
import os
import pwd
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aoe_fast.initiator import Initiator
from tests.conftest import requires
from tests.netns.conftest import GOOD, Serve
from tests.netns.test_privileges import USER, open_state, served

pytestmark = pytest.mark.netns
__all__ = ["open_state", "served"]

UNIT = Path(__file__).parents[2] / "systemd" / "pxed.service"
PROGRAMS = {"execve", "vfork", "wait4"}  # of mkfs.ext4, which the unit allows too


def sets() -> dict[str, set[str]]:
    """systemd's groups of system calls, with what they contain."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    found: dict[str, set[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = set()
        elif name and line.strip() and not line.strip().startswith("#"):
            found[name].add(line.strip())
    return found


def allowed() -> set[str]:
    """What the unit's SystemCallFilter lines come to, in their order."""
    groups = sets()

    def calls(word: str) -> set[str]:
        if not word.startswith("@"):
            return {word}
        return {each for part in groups[word] for each in calls(part)}

    left: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        named = {each for word in line.lstrip("~").split() for each in calls(word)}
        left = left - named if line.startswith("~") else left | named
    return left


def test_the_server_makes_no_other_system_call(served: Serve, tmp_path: Path) -> None:
    requires("strace", "systemd-analyze", "udhcpc", "curl")
    user = pwd.getpwnam(USER)
    for path in (served.state, *served.state.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    group = f'[control]\ngroup = "{grp.getgrgid(user.pw_gid).gr_name}"\n'
    trace = served.state.parent / "trace"
    trace.touch()
    os.chown(trace, user.pw_uid, -1)
    keep = "-all,+net_raw,+net_bind_service"
    process = served.cable.srv.popen(
        ["setpriv", "--reuid", USER, "--regid", str(user.pw_gid), "--clear-groups",
         "--bounding-set", keep, "--inh-caps", keep, "--ambient-caps", keep, "--",
         "strace", "-f", "-qq", "-o", str(trace), "--", *served.command(GOOD + group)],
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (served.state / "control.sock").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    cli = served.cable.cli
    cli.ip("addr add 10.77.0.2/24 dev eth0")
    cli.run(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "50", "-T", "2", "-s", "/bin/true",
             "-V", "PXEClient:Arch:00000:UNDI:002001"], check=False)  # fmt: skip
    for url in ("tftp://10.77.0.1/undionly.kpxe", "http://10.77.0.1/ipxe/snponly.efi"):
        cli.run(["curl", "-sf", "-m", "200", "-o", "/dev/null", url], timeout=240)
    with cli.inside(), Initiator("eth0", timeout=2) as client:
        client.read(16, 0, 0, 2)
        client.write(16, 3, 400_000, b"x" * 512)
    assert served.ask("status")
    (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(pid), 15)
    assert process.wait(60) == 0
    made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace.read_text(),
                          re.MULTILINE))  # fmt: skip
    assert {"sendto", "fdatasync", "capset"} <= made
    assert made - allowed() - PROGRAMS == set()


def test_the_server_needs_no_memory_that_is_writable_and_code(served: Serve) -> None:
    """MemoryDenyWriteExecute, by the kernel's own switch (prctl PR_SET_MDWE)."""
    wrapper = (
        "import ctypes, os, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = served.cable.srv.popen(
        [sys.executable, "-c", wrapper, *served.command(GOOD)], stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not (served.state / "control.sock").exists():
        if process.poll() == 77:
            pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    assert served.ask("status")
