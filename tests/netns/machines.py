"""Small installed systems to import, as directories, file systems and disks; and the import."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pxed.client.kernel import fetch_kernel
from tests.conftest import from_mirror, no_loop_device, requires

PROGRAMS = ("mksquashfs", "unsquashfs", "mcopy", "syslinux", "objcopy", "busybox", "qemu-img",
            "sfdisk", "mke2fs", "mkfs.fat", "losetup")  # fmt: skip
MIB = 1 << 20
RELEASE = "6.1.0-1"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a small installed system, with a real driver and a kernel that only looks so."""
    requires(*PROGRAMS)
    with from_mirror():
        kernel = fetch_kernel()
    monkeypatch.setenv("PXED_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "machine"
    vmlinuz = bytearray(2048)
    vmlinuz[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", vmlinuz, 0x236, 1)
    driver = "kernel/drivers/block/aoe/aoe.ko"
    files = {
        "etc/os-release": b'PRETTY_NAME="Small 1"\n', "etc/fstab": b"",
        f"lib/modules/{RELEASE}/modules.dep": f"{driver}:\n".encode(),
        f"lib/modules/{RELEASE}/modules.builtin": b"",
        f"lib/modules/{RELEASE}/{driver}": (kernel.modules / driver).read_bytes(),
        f"boot/vmlinuz-{RELEASE}": bytes(vmlinuz), "home/anna/mine": b"hers\n",
        "etc/ssh/ssh_host_rsa_key": b"secret\n", "srv/private": b"private\n", "tmp/x": b"x",
        "swapfile": bytes(4096),
    }  # fmt: skip
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "sbin").mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "sbin/init")
    os.chown(root / "home/anna/mine", 1000, 1000)
    return root


def ext4(source: Path | None, target: Path, mib: int = 16) -> Path:
    fill = ["-d", str(source)] if source else []
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *fill, str(target), f"{mib}M"], check=True)
    return target


def disk(target: Path, parts: Sequence[tuple[str, Path]], label: str = "gpt") -> Path:
    """A raw disk with these partitions (type, content), each on a whole MiB."""
    table, at = f"label: {label}\n", 1
    with target.open("wb") as out:
        for kind, content in parts:
            size = -(-content.stat().st_size // MIB)
            table += f"start={at}MiB, size={size}MiB, type={kind}\n"
            out.seek(at * MIB)
            out.write(content.read_bytes())
            at += size + 1
        out.truncate((at + 1) * MIB)
    subprocess.run(["sfdisk", "-q", str(target)], input=table, text=True, check=True)
    return target


class Importer:
    """``pxed image import`` into a state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def argv(self, source: Path, *words: str) -> list[str]:
        return [sys.executable, "-m", "pxed", "image", "import", str(source), "--name", "lab",
                "--version", "1", "--state-dir", str(self.state), *words]  # fmt: skip

    def __call__(self, source: Path, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [*self.argv(source, *words), "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        self.is_clean()
        return shown

    def refused(self, source: Path, *words: str, status: int = 2) -> str:
        """The one line that an import fails with."""
        done = subprocess.run(
            self.argv(source, *words), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        said = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
        assert len(said) == 1, done.stderr
        self.is_clean()
        assert not (self.state / "images" / "lab").exists()
        return said[0]

    def is_clean(self) -> None:
        """No mount, no loop device and no half-made directory is left."""
        assert str(self.state) not in Path("/proc/self/mountinfo").read_text()
        no_loop_device(self.state.parent)
        assert not list(self.state.glob("images/*/.*-*"))

    def root(self, shown: dict[str, Any]) -> Path:
        """The files of a squashfs root."""
        target = self.state.parent / "unpacked"
        subprocess.run(
            ["unsquashfs", "-q", "-n", "-d", str(target), shown["devices"]["root"]],
            check=True, capture_output=True,
        )  # fmt: skip
        return target


@pytest.fixture
def importer(tmp_path: Path) -> Importer:
    return Importer(tmp_path / "state")
