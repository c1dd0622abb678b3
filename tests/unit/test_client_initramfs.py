"""What the two makers of an initramfs put into it, without a boot: files, events, no modprobe."""

import os
import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.debroot import FILES

CLIENT = Path(str(resources.files("pxed.client")))


@pytest.mark.parametrize(
    ("script", "carrier"),
    [
        ("initramfs-tools/boot-script", "initramfs-tools/hook"),
        ("dracut/mount.sh", "dracut/module-setup.sh"),
    ],
)
def test_the_initramfs_has_every_file_that_its_boot_script_reads(script: str, carrier: str) -> None:
    read = re.findall(r"^ *\. /(\S+)$", (CLIENT / script).read_text(), re.MULTILINE)
    assert "functions.sh" in read
    places = [place for _, place, _ in FILES]
    for name in read:
        assert f"/{name} /{name}\n" in (CLIENT / carrier).read_text().replace('"', "")
        assert f"usr/share/pxed/{name}" in places


UDEV = """#!/bin/sh -e
systemd-udevd --daemon
udevadm trigger --type=subsystems --action=add
udevadm trigger --type=devices --action=add
udevadm settle || true
"""


def run_hook(destination: Path, first: str, disks: str = "") -> None:
    """That part of the hook alone which begins with the line ``first``."""
    hook = (CLIENT / "initramfs-tools/hook").read_text()
    begin = hook.index(f"\n{first}")
    part = hook[begin : hook.index("\nfi\n", begin) + 4]
    copy = 'copy_file() { cp "$2" "$DESTDIR$3"; }\n'
    subprocess.run(
        ["sh", "-ec", copy + part],
        env={
            "DESTDIR": str(destination), "PXED_DISKS": disks, "here": str(CLIENT),
            "PATH": os.environ["PATH"],
        },
        check=True,
    )  # fmt: skip


@pytest.mark.parametrize("disks", ["", "1"])
def test_the_initramfs_asks_for_few_events(tmp_path: Path, disks: str) -> None:
    """On what Debian's udev package brings; not where disks matter."""
    script = tmp_path / "scripts/init-top/udev"
    script.parent.mkdir(parents=True)
    script.write_text(UDEV)
    run_hook(tmp_path, "udev=", disks)
    if disks:
        assert script.read_text() == UDEV
        return
    assert script.read_text().splitlines() == [
        "#!/bin/sh -e",
        "systemd-udevd --daemon",
        ". /wake.sh",
        "udevadm settle || true",
    ]
    assert (tmp_path / "wake.sh").read_bytes() == (CLIENT / "wake.sh").read_bytes()


DEVICES = {
    "bus/pci/devices/card": ["modalias"],
    "bus/pci/devices/driven": ["modalias", "driver"],
    "bus/pci/devices/nameless": [],
    "bus/acpi/devices/LNXPWRBN:00": ["modalias"],
    "bus/acpi/devices/VMBUS:00": ["modalias"],
    "bus/cpu/devices/cpu0": ["modalias"],
    "class/net/eth0": [],
    "class/block/sda": [],
    "class/tpmrm/tpmrm0": [],
    "class/tty/tty0": [],
}


def test_what_may_need_a_driver_and_every_card_is_woken(tmp_path: Path) -> None:
    for name, more in DEVICES.items():
        (tmp_path / name).mkdir(parents=True)
        for file in ["uevent", *more]:
            (tmp_path / name / file).touch()
    (tmp_path / "bus/pci/devices/unwritable").mkdir()
    (tmp_path / "bus/pci/devices/unwritable/modalias").touch()
    (tmp_path / "bus/pci/devices/unwritable/uevent").mkdir()  # nobody can write to it
    (tmp_path / "class/net/bonding_masters").touch()
    wake = (CLIENT / "wake.sh").read_text().replace("/sys/", f"{tmp_path}/")
    subprocess.run(["sh", "-ec", wake], check=True, stderr=subprocess.DEVNULL)
    woken = {name for name in DEVICES if (tmp_path / name / "uevent").read_text() == "add\n"}
    assert woken == {
        "bus/pci/devices/card", "bus/acpi/devices/VMBUS:00", "class/net/eth0", "class/block/sda",
        "class/tpmrm/tpmrm0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "few"),
    [("quiet boot=pxed ro", True), ("boot=pxed", True), ("boot=pxed-live root=/dev/sda1", False)],
)
def test_dracut_asks_for_few_events_where_the_root_is_ours(
    tmp_path: Path, words: str, few: bool
) -> None:
    (tmp_path / "cmdline").write_text(f"{words}\n")
    generator = (CLIENT / "dracut/few-events.sh").read_text()
    generator = generator.replace("/proc/", f"{tmp_path}/")
    subprocess.run(["sh", "-euc", generator, "generator", str(tmp_path / "made")], check=True)
    made = tmp_path / "made/systemd-udev-trigger.service.d/pxed.conf"
    assert made.exists() == few
    if few:  # systemd takes the second line for: none of those before
        assert made.read_text() == "[Service]\nExecStart=\nExecStart=-/bin/sh /wake.sh\n"


def test_no_modprobe_can_be_run_before_init(tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    program = tmp_path / "sbin/modprobe"
    kmod = tmp_path / "kmod"
    kmod.touch(0o755)
    program.symlink_to(kmod)
    run_hook(tmp_path, 'if [ -e "$DESTDIR/sbin/modprobe" ]')
    assert not program.is_symlink()
    assert program.read_bytes() == b""
    assert program.stat().st_mode & 0o111 == 0
    config = (tmp_path / "conf/conf.d/pxed-modprobe").read_text()
    for _ in "twice":
        subprocess.run(["sh", "-ec", config.replace("/sbin/", f"{tmp_path}/sbin/")], check=True)
    assert program.is_symlink()
    assert program.readlink() == kmod
