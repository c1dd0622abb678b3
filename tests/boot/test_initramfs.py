"""What the initramfs does when things are missing or odd: each a boot of the real kernel.

The kernel is handed to QEMU directly and vblade serves the disks, so each takes a few seconds and
nothing but the client's own scripts is on trial.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pxed.client.archive import Cpio
from pxed.client.programs import add_programs
from pxed.lab.lab import Lab
from pxed.lab.netns import Namespace
from pxed.lab.qemu import Client
from tests.boot.debian import eventually
from tests.boot.disks import WORDS, Disks, damage, fill, is_in_memory
from tests.conftest import requires
from tests.netns.site import vblade

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

Starter = Callable[..., Client]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as room:
        yield room


@pytest.fixture
def disks(lab: Lab, lab_image: Path) -> Disks:
    return Disks(lab, lab_image)


@pytest.fixture
def start(lab: Lab, lab_image: Path) -> Starter:
    def power_on(
        more: str = "",
        *,
        plugged: bool = True,
        initrd: Path | None = None,
        extra: tuple[str, ...] = (),
    ) -> Client:
        client = lab.add_client(
            extra=(
                *extra,
                "-kernel", str(lab_image / "vmlinuz"),
                "-initrd", str(initrd or lab_image / "initrd"),
                "-append", f"{WORDS} {more}",
            ),
        )  # fmt: skip
        client.power_on(plugged=plugged)
        return client

    return power_on


def test_with_all_disks_it_runs_and_reports_each_step(disks: Disks, start: Starter) -> None:
    disks.root()
    disks.config()
    disks.report()
    client = start()
    client.wait_running()
    client.shell("sync")
    lines = disks.lines()
    assert [line.split()[0] for line in lines] == ["kernel", "root", "config", "running"]
    assert lines[1:] == ["root e16.1 lab@1", lines[2], "running lab@1"]
    assert re.fullmatch(r"config e16\.3, 1\dM of 1\dM free", lines[2])
    assert "eth0" in lines[0]


@pytest.mark.parametrize("disk", ["e16.1", "e16.3"])
def test_no_more_is_asked_of_a_disk_than_its_driver_has_frames_for(
    disks: Disks, start: Starter, disk: str
) -> None:
    disks.root()
    disks.config()
    client = start()
    client.wait_running()
    files = ("payload", "queue/max_sectors_kb", "queue/nr_requests")
    said = client.shell(f"cd '/sys/block/etherd!{disk}'; cat {' '.join(files)}; cd /")
    payload, kib, requests = map(int, said.split())
    assert kib * 1024 * requests <= 511 * payload
    assert kib * 1024 * requests >= 64 * payload


def test_a_report_disk_that_comes_last_of_all_gets_every_line(disks: Disks, start: Starter) -> None:
    disks.root()
    disks.config()
    client = start()
    client.wait_running()
    disks.report()
    client.shell(
        "until [ -b /dev/etherd/e16.4 ]; do echo > /dev/etherd/discover; sleep 1; done;"
        " until [ $(cat '/sys/block/etherd!e16.4/size') -gt 0 ]; do sleep 1; done"
    )
    client.shell("pxed-report running lab@1")
    client.shell("pxed-report more of it")
    steps = [line.split()[0] for line in disks.lines()]
    assert steps == ["kernel", "root", "config", "running", "more"]


def test_its_layer_is_of_its_image_and_safe_against_another_lower(
    disks: Disks, start: Starter
) -> None:
    disks.root()
    disks.config()
    client = start()
    client.wait_running()
    client.shell("echo mine > /etc/mine")
    assert client.shell("ls /config/layers/lab@1/upper/etc").split() == ["mine"]
    mount = client.shell("grep ' / overlay' /proc/mounts")
    assert "upperdir=/config/layers/lab@1/upper" in mount
    for option in ("metacopy=on", "redirect_dir=on", "index=on", "xino=on", "xino=auto"):
        assert option not in mount


def test_the_boot_disk_is_mounted_where_that_is_asked_for(
    disks: Disks, start: Starter, lab_image: Path
) -> None:
    disks.root()
    disks.config()
    disks.serve(0, lab_image / "boot.img")
    client = start("pxed.mount=boot,tfm pxed.config_wait=4")
    client.wait_running()
    assert "syslinux.cfg" in client.shell("ls /boot")
    assert "/dev/etherd/e16.0p1 /boot vfat ro" in client.shell("cat /proc/mounts")
    assert "no answer from AoE disk e16.2: nothing is mounted at /tfm" in client.console()


def test_without_a_config_disk_it_is_degraded_and_says_so(disks: Disks, start: Starter) -> None:
    disks.root()
    disks.report()
    client = start("pxed.config_wait=1")
    client.wait_running()
    assert "no answer from AoE disk e16.3" in client.shell("cat /run/pxed/degraded")
    assert "DEGRADED" in client.console()
    client.shell("echo kept in memory > /etc/mine")
    assert "degraded changes will be lost, no answer from AoE disk e16.3 within 1 s" in (
        disks.lines()
    )


def test_a_config_disk_without_a_file_system_is_degraded_too(disks: Disks, start: Starter) -> None:
    disks.root()
    disks.serve(3, disks.blank(3, 1 << 20))
    client = start()
    client.wait_running()
    assert "no ext4 file system" in client.shell("cat /run/pxed/degraded")


def kept(config: Path) -> str:
    """What lies in the layer on ``config``."""
    shown = ["debugfs", "-R", "cat layers/lab@1/upper/root/mine", str(config)]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout


def test_what_lies_on_a_disk_that_takes_no_writes_can_be_read(disks: Disks, start: Starter) -> None:
    config = disks.used_config()
    before = config.read_bytes()
    disks.root()
    disks.report()
    disks.serve(3, config, "-r")
    client = start()
    client.wait_running()
    assert "cannot write to e16.3: Input/output error" in is_in_memory(client, disks)
    assert client.shell("cat /root/mine") == "mine\n"
    assert config.read_bytes() == before


def test_a_full_disk_is_named_and_what_lies_there_can_be_read_and_removed(
    disks: Disks, start: Starter
) -> None:
    config = disks.used_config()
    fill(config, "/")
    disks.root()
    disks.report()
    disks.serve(3, config)
    client = start()
    client.wait_running()
    assert "cannot write to e16.3: No space left on device" in is_in_memory(client, disks)
    assert client.shell("cat /root/mine") == "mine\n"
    client.shell("rm /config/more*; sync")
    client.power_off()
    client.power_on()
    client.wait_running()
    assert "degraded" not in client.shell("ls /run/pxed")
    assert client.shell("cat /root/mine") == "mine\n"


def test_a_disk_that_layers_of_removed_versions_have_filled_has_room_again(
    disks: Disks, start: Starter
) -> None:
    config = disks.used_config("lab@0.8", "lab@0.9", "exam@1")
    fill(config, "/layers/lab@0.9/upper/home")
    disks.root()
    disks.report(b"pxed-former 1\nlab@0.9\nlab@0.8\n")
    disks.serve(3, config)
    client = start()
    client.wait_running()
    assert "degraded" not in client.shell("ls /run/pxed")
    (said,) = (line for line in disks.lines() if line.startswith("config "))
    assert said.endswith("free, layers of exam@1 besides, removed those of lab@0.8 lab@0.9")
    assert client.shell("ls -A /config/layers").split() == ["exam@1", "lab@1"]
    assert client.shell("cat /root/mine; echo new > /root/new; cat /root/new") == "mine\nnew\n"


def test_a_damaged_directory_of_its_layer_is_no_root(disks: Disks, start: Starter) -> None:
    config = disks.used_config()
    damage(config)
    disks.root()
    disks.report()
    disks.serve(3, config)
    client = start()
    client.wait_running()
    assert is_in_memory(client, disks) == "the layer on e16.3 is damaged"


def test_what_e2fsck_cannot_repair_is_not_mounted(
    lab: Lab, disks: Disks, start: Starter, lab_image: Path
) -> None:
    # As in the initramfs of an imported machine: the programs come before the rest.
    programs = Cpio()
    add_programs(programs, {"e2fsck": "e2fsprogs"})
    initrd = lab.directory / "initrd"
    initrd.write_bytes(bytes(programs) + (lab_image / "initrd").read_bytes())
    config = disks.used_config()
    with config.open("r+b") as disk:
        disk.truncate(12 << 20)
    disks.root()
    disks.report()
    disks.serve(3, config)
    client = start(initrd=initrd)
    client.wait_running()
    assert "no ext4 file system that can be repaired" in is_in_memory(client, disks)
    with config.open("r+b") as disk:
        disk.truncate(16 << 20)
    assert kept(config) == "mine\n"


def test_without_a_root_it_says_why_and_starts_again(disks: Disks, start: Starter) -> None:
    disks.report()
    client = start("pxed.wait=2 pxed.reboot=1")
    client.wait_for("cannot start: no answer from AoE disk e16.1 within 2 s on eth0", timeout=100)
    client.wait_for("restarting in 1 s", timeout=100)
    client.wait_for(r"(?s)restarting in 1 s.*cannot start", timeout=100)
    # A slow machine has not found this disk either after two seconds; it tries again and again.
    why = "failed no answer from AoE disk e16.1"
    assert eventually(lambda: any(line.startswith(why) for line in disks.lines()[1:2]))


def test_a_root_that_is_no_file_system_is_named(disks: Disks, start: Starter) -> None:
    disks.serve(1, disks.blank(1, 1 << 20))
    client = start("pxed.reboot=0")
    client.wait_for("cannot start: disk e16.1 holds no squashfs, erofs or ext4", timeout=100)


def test_a_root_that_comes_late_is_found(disks: Disks, start: Starter) -> None:
    client = start()
    client.wait_for("kernel", timeout=100)
    disks.root()
    disks.config()
    client.wait_running()


def test_a_cable_that_comes_late_is_waited_for(disks: Disks, start: Starter) -> None:
    disks.root()
    disks.config()
    client = start(plugged=False)
    with pytest.raises(Exception, match="no 'pxed: '"):
        client.wait_for("pxed: ", timeout=6)
    client.cable(plugged=True)
    client.wait_running()


def test_a_target_with_the_same_address_on_a_second_cards_network_is_left_alone(
    disks: Disks, start: Starter, lab: Lab
) -> None:
    with Namespace("other") as other:
        lab.switch.ip(
            "tuntap add dev tap-other mode tap", "link add br-other type bridge forward_delay 0",
            f"link add veth-other type veth peer name eth0 netns {other.pid}",
            "link set tap-other master br-other up", "link set veth-other master br-other up",
            "link set br-other up",
        )  # fmt: skip
        other.ip("link set eth0 up")
        noise = disks.blank(9, 1 << 20)
        noise.write_bytes(bytes(range(256)) * 4096)
        vblade(other, 16, 1, noise)
        vblade(other, 16, 3, noise)
        disks.root()
        disks.config()
        disks.report()
        card = ("-netdev", "tap,id=nic1,ifname=tap-other,script=no,downscript=no", "-device",
                "virtio-net-pci,netdev=nic1,mac=52:54:00:00:99:01,romfile=")  # fmt: skip
        client = start(extra=card)
        client.wait_running()
        assert "eth0 eth1" in client.console()
        assert client.shell("cat /sys/block/etherd*/netif") == "eth0\n" * 3
        client.shell("md5sum /dev/etherd/e16.1")
        assert "degraded" not in client.console()


@pytest.mark.parametrize("kind", ["ext4", "erofs"])
def test_another_kind_of_root_at_another_address_boots(
    lab: Lab, disks: Disks, start: Starter, lab_image: Path, kind: str
) -> None:
    requires("unsquashfs", f"mkfs.{kind}")
    root = lab.directory / "root"
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", str(root), str(lab_image / "root.squashfs")],
        check=True, capture_output=True,
    )  # fmt: skip
    (root / "etc/pxed-image").write_text("")  # the generation then comes from the super block
    disk = disks.blank(7, 16 << 20)
    make = ["mkfs.ext4", "-q", "-F", "-d", str(root), str(disk)]
    if kind == "erofs":
        make = ["mkfs.erofs", str(disk), str(root)]
    subprocess.run(make, check=True, capture_output=True)
    disks.serve(7, disk)
    disks.config()
    client = start("pxed.root=e16.7")
    client.wait_running()
    (layer,) = client.shell("ls /config/layers").split()
    assert len(layer) == 32
