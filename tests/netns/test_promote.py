"""pxed promote beside a running server: a small root in place of an installed Debian."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import requires
from tests.netns.test_manage import M1, M2, Room, room

__all__ = ["room"]
pytestmark = pytest.mark.netns

PROGRAMS = ("unshare", "mksquashfs", "unsquashfs", "mcopy", "syslinux", "objcopy", "busybox")
MKINITRAMFS = '#!/bin/sh\necho "initramfs of $3" > "$2"\n'


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with all that promote asks for; its own programs are busybox's."""
    requires(*PROGRAMS)
    monkeypatch.setenv("PXED_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "machine"
    files = {
        "etc/os-release": "ID=small\n", "etc/hostname": "server\n", "sbin/init": "x",
        "lib/modules/6.1.0-1/modules.dep": "kernel/drivers/block/aoe/aoe.ko:\n",
        "lib/modules/6.1.0-1/modules.builtin": "", "boot/vmlinuz-6.1.0-1": "kernel\n",
        "usr/sbin/mkinitramfs": MKINITRAMFS, "home/anna/mine": "hers\n",
        "srv/private/x": "private\n", "var/log/syslog": "log\n", "root/secret": "secret\n",
    }  # fmt: skip
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "usr/sbin/mkinitramfs").chmod(0o755)
    (root / "bin").mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    for link in ("sh", "mkdir", "mv", "rm", "ln", "sleep", "cat"):
        (root / "bin" / link).symlink_to("busybox")
    return root


def snapshot(root: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_mtime_ns) for p in root.rglob("*"))


def promote(room: Room, machine: Path, *words: str, status: int = 0) -> str:
    return room.pxed(
        "promote", "--root", str(machine), "-c", str(room.config), *words, status=status
    )


def test_promoted_and_undone_while_clients_run(room: Room, machine: Path) -> None:
    room.start()
    room.boot(M1)
    room.runs(M1)
    before = snapshot(machine)
    said = promote(room, machine, "--version", "2", "--exclude", "/srv/private",
                   "--exclude", "/root/secret")  # fmt: skip
    assert "lab@2 is what booting seats get" in said
    assert snapshot(machine) == before, "the machine was changed"
    assert room.read(M1, 0)[:1] == b"1"
    image = room.state / "images/lab/2"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(image / "x"), str(image / "root.squashfs")],
                   check=True, capture_output=True)  # fmt: skip
    root = image / "x"
    assert (root / "home/anna/mine").read_text() == "hers\n"
    assert (root / "etc/pxed-image").read_text() == "lab@2\n"
    for gone in ("etc/hostname", "srv/private/x", "root/secret", "boot/vmlinuz-6.1.0-1",
                 "var/log/syslog"):  # fmt: skip
        assert not (root / gone).exists(), gone
    assert (image / "initrd").read_text() == "initramfs of 6.1.0-1\n"
    shutil.rmtree(root)
    assert "ok   root.squashfs" in room.pxed("image", "verify", "lab@2")
    room.boot(M2)
    assert room.client(M2)["image"] == "lab@2"
    said = room.pxed("promote", "--undo", "-c", str(room.config))
    assert "booting seats get lab@1 again; lab@2 stays until nobody needs it" in said
    room.boot(M2)
    assert room.read(M2, 0)[:1] == b"1"
    room.pxed("image", "remove", "lab@2")


def test_undone_with_nobody_on_it_the_image_is_gone(room: Room, machine: Path) -> None:
    room.start()
    promote(room, machine, "--version", "2")
    assert "lab@2 is removed" in room.pxed("promote", "--undo", "-c", str(room.config))
    left = [p.name for p in (room.state / "images/lab").iterdir() if p.is_dir()]
    assert left == ["1"]
    assert not (room.state / "promoted.json").exists()


def test_a_killed_promote_leaves_no_mount_and_the_next_one_cleans(
    room: Room, machine: Path
) -> None:
    room.write()
    slow = machine / "usr/sbin/mkinitramfs"
    slow.write_text(MKINITRAMFS.replace("echo", "sleep 60; echo", 1))
    words = [sys.executable, "-m", "pxed", "promote", "--root", str(machine), "--no-serve",
             "--name", "lab", "--version", "2", "--state-dir", str(room.state)]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "initramfs" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 60
    while any(str(machine) in text for text in commands()):
        assert time.monotonic() < deadline, "its helpers still run"
        time.sleep(0.05)
    assert "pxed" not in Path("/proc/self/mounts").read_text().split()
    assert not (room.state / "images/lab/2").exists()
    slow.write_text(MKINITRAMFS)
    promote(room, machine, "--version", "2", "--no-serve")
    left = sorted(p.name for p in (room.state / "images/lab").iterdir())
    assert left == ["1", "2", "channels.json"]


def commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except OSError:
            continue


def test_a_root_without_a_kernel_for_seats_is_refused(room: Room, machine: Path) -> None:
    room.write()
    (machine / "lib/modules/6.1.0-1/modules.dep").write_text("kernel/fs/ext4.ko:\n")
    said = promote(room, machine, "--version", "2", "--no-serve", status=1)
    assert "apt install linux-image-amd64" in said
    (machine / "usr/sbin/mkinitramfs").unlink()
    said = promote(room, machine, "--version", "2", "--no-serve", status=1)
    assert "apt install initramfs-tools" in said
    assert [p.name for p in (room.state / "images/lab").iterdir()] == ["1"]


def test_without_a_server_it_serves_at_once(room: Room, machine: Path) -> None:
    room.write()
    command = [sys.executable, "-m", "pxed", "promote", "--root", str(machine), "-c",
               str(room.config), "--version", "2"]  # fmt: skip
    log = (room.state.parent / "log").open("ab")
    room.process = room.cable.srv.popen(command, stderr=log)
    log.close()
    room.until(room.answers, 180)
    assert room.control.get("/v1/status")["images"] == {"x86": "lab@2"}
    assert json.loads((room.state / "promoted.json").read_text())["before"] == "lab@1"
    assert os.path.exists(room.state / "images/lab/2/build.log")
