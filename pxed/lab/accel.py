"""Which QEMU accelerator works on this machine: /dev/kvm may open and still never run a guest."""

import contextlib
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

from pxed.client.kernel import cache_dir, fetch_kernel
from pxed.errors import HostError
from pxed.lab.netns import die_with_parent

QEMU = "qemu-system-x86_64"
_chosen: str | None = None


def pick_accel(*, limit: float = 3.0) -> str:
    """``kvm`` if a guest's kernel really runs under it within ``limit`` seconds, else ``tcg``.

    $PXED_ACCEL overrides. The answer is kept until the machine boots again. HostError without QEMU.
    """
    global _chosen
    if forced := os.environ.get("PXED_ACCEL"):
        if forced not in ("kvm", "tcg"):
            raise HostError(f"PXED_ACCEL={forced}: kvm and tcg are allowed")
        return forced
    if _chosen is None:
        if shutil.which(QEMU) is None:
            raise HostError(f"{QEMU} is missing: apt install qemu-system-x86")
        _chosen = _remembered() or _remember("kvm" if _kvm_runs(limit) else "tcg")
    return _chosen


def _note() -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return cache_dir() / f"accel-{boot}"


def _remembered() -> str | None:
    with contextlib.suppress(OSError):
        if (said := _note().read_text().strip()) in ("kvm", "tcg"):
            return said
    return None


def _remember(accel: str) -> str:
    note = _note()
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        for old in note.parent.glob("accel-*"):
            old.unlink(missing_ok=True)
        fresh = note.with_name(f".accel-{os.getpid()}")
        fresh.write_text(accel + "\n")
        fresh.rename(note)
    return accel


def _kvm_runs(limit: float) -> bool:
    """A guest's 64-bit kernel speaks on its console within the time limit.

    Firmware alone proves nothing: there are hosts where it runs and the step to long mode hangs.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    argv = [
        QEMU, "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-m", "256", "-serial", "stdio",
        "-kernel", str(fetch_kernel().vmlinuz), "-append", "console=ttyS0 panic=-1",
    ]  # fmt: skip
    probe = subprocess.Popen(
        die_with_parent(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert probe.stdout is not None
    said = b""
    try:
        until = time.monotonic() + limit
        while b"Linux version" not in said:
            left = until - time.monotonic()
            if left <= 0 or not select.select([probe.stdout], [], [], left)[0]:
                return False
            if not (more := os.read(probe.stdout.fileno(), 4096)):
                return False
            said += more
        return True
    finally:
        probe.kill()
        # A vcpu that hangs in the kernel may not even die at once: do not wait for it for ever.
        with contextlib.suppress(subprocess.TimeoutExpired):
            probe.wait(2)
        probe.stdout.close()
