"""What `pxed promote` refuses, what it leaves out, and that it can be undone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pxed.client.initramfs import script
from pxed.client.promote import look, own_mounts, promote
from pxed.errors import HostError, UsageError
from tests.conftest import requires

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 254:1 / /tmp rw - ext4 /dev/vdb rw
25 22 254:2 / /var rw shared:5 master:1 - xfs /dev/vdc rw
26 22 254:3 / /usr/no\040such rw - ext4 /dev/vdd rw
27 22 254:4 / /home rw - btrfs /dev/vde rw
28 22 254:5 / /boot rw - vfat /dev/vdf rw
29 22 0:40 / /opt rw - nfs4 server:/opt rw
"""


def test_the_file_systems_of_the_system_are_told_from_others() -> None:
    assert own_mounts(MOUNTINFO) == (["/home", "/var"], ["/boot", "/tmp"])


def test_what_seats_do_not_get_is_not_looked_at() -> None:
    assert own_mounts(MOUNTINFO, ["/var", "/tmp"]) == (["/home"], ["/boot"])


@pytest.mark.parametrize("path", ["srv", "/", "/a/../b", "/a\nb"])
def test_only_absolute_paths_are_left_out(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absolute path"):
        look(tmp_path, without=[path])


def test_what_is_no_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no directory and no block device"):
        look(tmp_path / "file")
    with pytest.raises(UsageError, match="No such file"):
        look(tmp_path / "nothing")


def test_a_device_that_is_mounted_read_write_or_was_left_so_is_refused(tmp_path: Path) -> None:
    requires("losetup", "mkfs.ext4")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    found = subprocess.run(
        ["losetup", "--find", "--show", str(disk)], check=True, capture_output=True, text=True
    )
    device = found.stdout.strip()
    try:
        assert look(Path(device)).copy is False
        assert look(Path(device), copy=True).copy is True
        (tmp_path / "mnt").mkdir()
        subprocess.run(["mount", device, str(tmp_path / "mnt")], check=True)
        try:
            with pytest.raises(UsageError, match=r"mounted read-write on .*mnt"):
                look(Path(device))
        finally:
            subprocess.run(["umount", str(tmp_path / "mnt")], check=True)
        change = ["debugfs", "-w", "-R", "feature needs_recovery", device]
        subprocess.run(change, check=True, capture_output=True)
        with pytest.raises(UsageError, match="was not unmounted in order: start that machine"):
            look(Path(device), copy=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_directory_without_a_system_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("unshare", "mksquashfs", "syslinux", "mcopy", "objcopy")
    monkeypatch.setenv("PXED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "root").mkdir()
    with pytest.raises(HostError, match="no installed system"):
        promote(
            tmp_path / "images/lab/1", look(tmp_path / "root"), name="lab", version="1",
            state_dir=tmp_path / "state",
        )  # fmt: skip
    assert list((tmp_path / "images/lab").iterdir()) == []
    assert list((tmp_path / "root").iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("unshare", "mksquashfs", "syslinux", "mcopy", "objcopy")
    (tmp_path / "root").mkdir()
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=100 << 20))
    with pytest.raises(HostError, match="only 100 MiB are free"):
        promote(
            tmp_path / "1", look(tmp_path / "root"), name="lab", version="1", state_dir=tmp_path
        )


def adopt(root: Path) -> None:
    (root / "adopt.sh").write_bytes(script("adopt.sh"))
    command = ["sh", "-euc", '. "$1/adopt.sh"; adopt_root "$1" lab@1', "sh", str(root)]
    subprocess.run(command, check=True)


def test_nothing_of_the_one_machine_reaches_a_seat(tmp_path: Path) -> None:
    files = {
        "etc/fstab": "# mine\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n"
        "nas:/home /home nfs rw,soft 0 0\n",
        "etc/crypttab": "data UUID=3 none luks\n", "etc/hostname": "server\n",
        "etc/machine-id": "beef\n", "etc/network/interfaces": "iface eth0 inet static\n",
        "etc/network/interfaces.d/lab": "iface eth1 inet static\n",
        "etc/systemd/network/10-lab.network": "[Network]\nAddress=10.0.0.1/24\n",
        "etc/NetworkManager/system-connections/wired": "[ipv4]\n",
        "etc/ssh/ssh_host_rsa_key": "k", "etc/ssh/sshd_config": "keep", "etc/krb5.keytab": "k",
        "etc/pxed/pxed.toml": "x", "root/.ssh/id_ed25519": "k", "root/.ssh/authorized_keys": "keep",
        "lib/systemd/system/dnsmasq.service": "x", "etc/systemd/system/pxed.service": "x",
        "lib/systemd/system/cups.service": "keep",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    adopt(tmp_path)
    adopt(tmp_path)  # a second time changes nothing
    left = {name for name in files if (tmp_path / name).exists()}
    assert left == {
        "etc/fstab", "etc/crypttab", "etc/machine-id", "etc/network/interfaces",
        "etc/ssh/sshd_config", "root/.ssh/authorized_keys", "lib/systemd/system/dnsmasq.service",
        "etc/systemd/system/pxed.service", "lib/systemd/system/cups.service",
    }  # fmt: skip
    assert (tmp_path / "etc/fstab").read_text() == "nas:/home /home nfs rw,soft 0 0\n"
    assert (tmp_path / "etc/crypttab").read_text() == ""
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert "static" not in (tmp_path / "etc/network/interfaces").read_text()
    own = tmp_path / "etc/systemd/system"
    assert {each.name for each in own.iterdir() if each.is_symlink() and
            str(each.readlink()) == "/dev/null"} == {
        "dnsmasq.service", "pxed.service", "systemd-networkd-wait-online.service"}  # fmt: skip
    assert (tmp_path / "etc/pxed-image").read_text() == "lab@1\n"


def test_a_seat_has_its_kernel_from_the_server_and_makes_no_initramfs(tmp_path: Path) -> None:
    conf = tmp_path / "etc/initramfs-tools/update-initramfs.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("# update_initramfs [ yes | all | no ]\nupdate_initramfs=yes\nbackup=no\n")
    (tmp_path / "etc/apt").mkdir()
    adopt(tmp_path)
    adopt(tmp_path)
    assert conf.read_text().splitlines()[1:] == ["update_initramfs=no", "backup=no"]
    pinned = (tmp_path / "etc/apt/preferences.d/pxed").read_text()
    assert re.search(r"^Package: .*linux-image-\* .*grub-pc", pinned, re.MULTILINE)
    assert "Pin-Priority: -1\n" in pinned


def test_the_next_version_on_a_machines_own_disk_keeps_what_its_user_has_set(
    tmp_path: Path,
) -> None:
    """One layer serves all versions there: /usr was put aside, and /etc stays."""
    root, adoption = tmp_path / "root", tmp_path / "adopt"
    (root / "etc").mkdir(parents=True)
    (adoption / "files/usr/sbin").mkdir(parents=True)
    (adoption / "files/usr/sbin/pxed-good").write_text("good")
    (adoption / "adopt.sh").write_bytes(script("adopt.sh"))
    (tmp_path / "keep.sh").write_bytes(script("keep.sh"))

    def start(image: str) -> None:
        (adoption / "image").write_text(f"{image}\n")
        command = 'adoption=$1; . "$2/keep.sh"; adopt "$2/root"'
        argv = ["busybox", "sh", "-euc", command, "sh", str(adoption), str(tmp_path)]
        subprocess.run(argv, check=True)

    (root / "etc/hostname").write_text("golden")
    start("lab@1")
    assert not (root / "etc/hostname").exists()
    (root / "etc/hostname").write_text("seat-7")
    (root / "usr/sbin/pxed-good").unlink()
    start("lab@1")
    assert not (root / "usr/sbin/pxed-good").exists(), "it was made the seat's own once before"
    start("lab@2")
    assert (root / "etc/hostname").read_text() == "seat-7"
    assert (root / "etc/pxed-image").read_text() == "lab@2\n"
    assert (root / "usr/sbin/pxed-good").read_text() == "good"
    wants = root / "etc/systemd/system/multi-user.target.wants"
    assert {each.name for each in wants.iterdir()} >= {"pxed-good.service", "pxed-running.service"}


def pxed(state: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pxed", "promote", *words, "--state-dir", str(state)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two versions of an image; the second is what was promoted."""
    for version in ("1", "2"):
        directory = tmp_path / "images/lab" / version
        directory.mkdir(parents=True)
        for device in ("boot.img", "root.img"):
            (directory / device).write_bytes(bytes(4096))
        said = {"name": "lab", "version": version, "class": "x86",
                "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
        (directory / "manifest.json").write_text(json.dumps(said))
    return tmp_path


def record(state: Path, before: str, *line: str) -> None:
    (state / "images/lab/channels.json").write_text(json.dumps({"stable": line}))
    said = {"image": "lab@2", "channel": "stable", "before": before}
    (state / "promoted.json").write_text(json.dumps(said))


def test_undone_seats_get_what_they_had(state: Path) -> None:
    record(state, "lab@1", "1", "2")
    assert "booting seats get lab@1 again; lab@2 is removed" in pxed(state, "--undo")
    assert [p.name for p in (state / "images/lab").iterdir() if p.is_dir()] == ["1"]
    assert "nothing was promoted" in pxed(state, "--undo", status=2)


def test_the_only_image_goes_with_its_channel(state: Path) -> None:
    shutil.rmtree(state / "images/lab/1")
    record(state, "", "2")
    assert "nothing to boot" in pxed(state, "--undo")
    assert not (state / "images/lab").exists()


def test_a_damaged_record_says_what_else_helps(state: Path) -> None:
    (state / "promoted.json").write_text("{")
    assert "pxed image rollback" in pxed(state, "--undo", status=1)


def test_the_class_decides_how_the_image_is_called(state: Path) -> None:
    config = state / "pxed.toml"
    config.write_text(f'interface = "eth0"\nstate_dir = "{state}"\n[class.x86]\nimage = "lab@1"\n')
    said = pxed(state, "--dry-run", "-c", str(config), status=2)
    assert 'write "lab"' in said
    assert "seats boot other" in pxed(state, "--dry-run", "--name", "other", status=2)
    assert "is there already" in pxed(state, "--dry-run", "--version", "1", status=2)
