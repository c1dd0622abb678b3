"""What dracut's initramfs does when something is wrong: the same as others (test_initramfs.py).

The kernel is handed to QEMU directly, and the root is the minimal one, so each start takes seconds.
Long, as the initramfs is a Debian image's.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from pxed.lab.qemu import Client
from tests.boot.disks import WORDS, Disks, damage, fill, fill_blocks, is_in_memory
from tests.boot.others import squash
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(900)]

Starter = Callable[..., Client]


@pytest.fixture(scope="module")
def root(lab_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the minimal root, and in it what systemd wants to see of a system."""
    requires("unsquashfs")
    place = tmp_path_factory.mktemp("dracut-root")
    out = ["unsquashfs", "-q", "-n", "-d", str(place / "root"), str(lab_image / "root.squashfs")]
    subprocess.run(out, check=True, capture_output=True)
    (place / "root/etc/os-release").write_text("ID=lab\n")
    squash(place / "root", place / "root.squashfs")
    return place


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as room:
        yield room


@pytest.fixture
def disks(lab: Lab, root: Path) -> Disks:
    served = Disks(lab, root)
    served.root()
    return served


@pytest.fixture
def start(lab: Lab, dracut_image: Path) -> Starter:
    def power_on(more: str = "") -> Client:
        client = lab.add_client(
            memory=1024,
            extra=(
                "-kernel", str(dracut_image / "vmlinuz"),
                "-initrd", str(dracut_image / "initrd"),
                "-append", f"boot=pxed aoe.aoe_deadsecs=0 {WORDS} {more}",
            ),
        )  # fmt: skip
        client.power_on()
        if not more:
            client.wait_running(400)
        return client

    return power_on


def test_a_disk_in_order_is_the_seats_and_old_layers_go(disks: Disks, start: Starter) -> None:
    config = disks.used_config("lab@0.8", "lab@0.9", "exam@1")
    fill(config, "/layers/lab@0.9/upper/home")
    disks.report(b"pxed-former 1\nlab@0.9\nlab@0.8\n")
    disks.serve(3, config)
    client = start()
    assert "degraded" not in client.shell("ls /run/pxed")
    steps = disks.lines()
    assert [line.split()[0] for line in steps] == ["kernel", "root", "config", "running"]
    assert re.fullmatch(
        r"config e16\.3, \d+M of 1\dM free, layers of exam@1 besides,"
        r" removed those of lab@0\.8 lab@0\.9", steps[2],
    )  # fmt: skip
    assert client.shell("ls -A /config/layers").split() == ["exam@1", "lab@1"]
    assert client.shell("cat /root/mine; echo new > /root/new; cat /root/new") == "mine\nnew\n"


def test_what_lies_on_a_disk_that_takes_no_writes_can_be_read(disks: Disks, start: Starter) -> None:
    config = disks.used_config()
    before = config.read_bytes()
    disks.report()
    disks.serve(3, config, "-r")
    client = start()
    assert "cannot write to e16.3: Input/output error" in is_in_memory(client, disks)
    assert client.shell("cat /root/mine") == "mine\n"
    assert config.read_bytes() == before


@pytest.mark.parametrize("of", ["blocks", "inodes"])
def test_a_full_disk_is_named_and_what_lies_there_can_be_read(
    disks: Disks, start: Starter, of: str
) -> None:
    config = disks.used_config()
    if of == "blocks":
        fill_blocks(config)
    else:
        fill(config, "/")
    disks.report()
    disks.serve(3, config)
    client = start()
    assert "cannot write to e16.3: No space left on device" in is_in_memory(client, disks)
    assert client.shell("cat /root/mine; ls -d /config/layers") == "mine\n/config/layers\n"


def test_a_damaged_directory_of_its_layer_is_no_root(disks: Disks, start: Starter) -> None:
    config = disks.used_config()
    damage(config)
    disks.report()
    disks.serve(3, config)
    client = start()
    assert is_in_memory(client, disks) == "the layer on e16.3 is damaged"


def test_a_disk_without_a_file_system_is_named(disks: Disks, start: Starter) -> None:
    disks.report()
    disks.serve(3, disks.blank(3, 1 << 20))
    assert "e16.3 holds no ext4 file system" in is_in_memory(start(), disks)


def test_without_a_root_there_is_a_shell_and_then_another_start(lab: Lab, start: Starter) -> None:
    client = start("pxed.wait=2 pxed.reboot=1 pxed.shell")
    client.wait_for("cannot start: no answer from AoE disk e16.1 within 2 s on e", timeout=300)
    assert "/lower" in client.shell("ls -d /sysroot; mkdir /lower; echo /l*")
    client.send("exit\n")
    client.wait_for(r"(?s)restarting in 1 s.*cannot start", timeout=300)


def test_its_initramfs_asks_for_few_events(dracut_image: Path) -> None:
    requires("cpio", "zstd")
    packed = (dracut_image / "initrd").read_bytes()
    raw = subprocess.run(["zstd", "-dc"], input=packed, capture_output=True, check=True).stdout
    shown = subprocess.run(["cpio", "-it", "--quiet"], input=raw, capture_output=True, check=True)
    files = shown.stdout.decode().split()
    assert {"wake.sh", "etc/systemd/system-generators/pxed-few-events"} <= set(files)
