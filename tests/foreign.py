"""Programs for arm64 on this machine, run in namespaces that know how and end with them.

Since Linux 6.7 a user namespace has a binfmt_misc of its own: qemu-user is registered there, and
nothing on this machine changes. ``python -m tests.foreign QEMU COMMAND...``
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from pxed.client.debs import fetch_package

_NEWUSER, _NEWNS, _PDEATHSIG, _KILL = 0x10000000, 0x20000, 1, 9
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def argv(*command: str) -> list[str]:
    """The command line that runs ``command`` where arm64 programs can be run."""
    qemu = fetch_package("qemu-user-static", "amd64") / "usr/bin/qemu-aarch64-static"
    return [sys.executable, "-m", "tests.foreign", str(qemu), *command]


def main(qemu: str, *command: str) -> int:
    """Run it; its exit status."""
    ready, go = os.pipe(), os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        libc.prctl(_PDEATHSIG, _KILL, 0, 0, 0)
        if libc.unshare(_NEWUSER | _NEWNS) != 0:
            sys.exit("no user namespaces here")
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os.setgid(0)
        os.setuid(0)
        libc.prctl(_PDEATHSIG, _KILL, 0, 0, 0)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt", str(_BINFMT)], check=True)
        with (_BINFMT / "register").open("wb", buffering=0) as register:
            rule = b":qemu-aarch64:M::" + _MAGIC + b":" + _MASK + b":" + qemu.encode() + b":FC"
            register.write(rule)
        os.execvp(command[0], command)  # noqa: S606 - there is none to want
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text("0 0 65536\n")
    os.write(go[1], b"x")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
