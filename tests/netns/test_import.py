"""pxed image import, as a person calls it: what small disks and directories become, refusals."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import no_loop_device, requires
from tests.netns.machines import MIB, RELEASE, Importer, disk, ext4, importer, machine
from tests.netns.test_manage import M1, Room, room

__all__ = ["importer", "machine", "room"]

pytestmark = pytest.mark.netns


def test_a_raw_disk_keeps_its_root_as_it_is(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    root = ext4(machine, tmp_path / "ext4")
    (tmp_path / "esp").write_bytes(bytes(MIB))
    source = disk(tmp_path / "disk.raw", [("uefi", tmp_path / "esp"), ("linux", root)])
    shown = importer(source)
    assert shown["channels"] == ["stable"]
    assert shown["origin"] == {
        "source": "disk.raw", "kind": "raw", "root": "partition 2, ext4", "system": "Small 1",
        "kernel": RELEASE,
    }  # fmt: skip
    assert Path(shown["devices"]["root"]).read_bytes() == root.read_bytes()
    assert shown["diskless_only"] == ""
    assert {"boot", "root", "tfm"} == shown["devices"].keys()
    verified = subprocess.run(
        [sys.executable, "-m", "pxed", "image", "verify", "lab", "--state-dir",
         str(importer.state)], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "ok   root.img" in verified.stdout


def test_an_mbr_disk_with_a_logical_partition_as_qcow2(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    root = ext4(machine, tmp_path / "ext4")
    raw = tmp_path / "raw"
    with raw.open("wb") as out:
        out.seek(4 * MIB)
        out.write(root.read_bytes())
        out.truncate(24 * MIB)
    table = "label: dos\nstart=2048, size=2048, type=82\nstart=4096, size=40960, type=5\n"
    table += "start=8192, size=32768, type=83\n"
    subprocess.run(["sfdisk", "-q", str(raw)], input=table, text=True, check=True)
    source = tmp_path / "golden.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, source], check=True)
    shown = importer(source, "--no-maintenance")
    assert shown["origin"]["kind"] == "qcow2"
    assert shown["origin"]["root"] == "partition 5, ext4"
    assert Path(shown["devices"]["root"]).read_bytes() == root.read_bytes()
    assert "no-maintenance" in shown["diskless_only"]


def test_a_file_system_without_a_table(importer: Importer, machine: Path, tmp_path: Path) -> None:
    shown = importer(ext4(machine, tmp_path / "ext4"), "--no-maintenance")
    assert shown["origin"]["root"] == "the disk, ext4"


def test_a_directory_is_packed_without_what_is_not_for_seats(
    importer: Importer, machine: Path
) -> None:
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in machine.rglob("*"))
    root = importer.root(importer(machine, "--exclude", "/srv/private", "--no-maintenance"))
    assert before == sorted((str(p), p.lstat().st_mtime_ns) for p in machine.rglob("*"))
    assert (root / "home/anna/mine").read_text() == "hers\n"
    assert (root / "home/anna/mine").stat().st_uid == 1000
    for gone in ("boot/vmlinuz-6.1.0-1", "tmp/x", "etc/ssh/ssh_host_rsa_key", "swapfile",
                 "srv/private"):  # fmt: skip
        assert not (root / gone).exists(), gone
    assert (root / "boot").is_dir()


def test_a_directory_as_erofs(importer: Importer, machine: Path, tmp_path: Path) -> None:
    requires("mkfs.erofs", "fsck.erofs")
    shown = importer(machine, "--format", "erofs", "--no-maintenance")
    target = tmp_path / "unpacked"
    subprocess.run(
        ["fsck.erofs", f"--extract={target}", shown["devices"]["root"]],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (target / "home/anna/mine").read_text() == "hers\n"
    assert not (target / "boot/vmlinuz-6.1.0-1").exists()
    assert not (target / "swapfile").exists()
    assert (target / "boot").is_dir()


def test_a_system_on_two_partitions_is_packed_into_one(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    (machine / "etc/fstab").write_text("/dev/sda2 /home ext4 defaults 0 2\n")
    (machine / "home/anna").rename(tmp_path / "anna")
    (tmp_path / "home").mkdir()
    (tmp_path / "anna").rename(tmp_path / "home/anna")
    parts = [("linux", ext4(machine, tmp_path / "a")), ("linux", ext4(tmp_path / "home",
             tmp_path / "b"))]  # fmt: skip
    source = disk(tmp_path / "disk", parts)
    assert "/home is on partition 2: --format squashfs" in importer.refused(
        source, "--format", "keep"
    )
    shown = importer(source, "--no-maintenance")
    assert shown["origin"]["root"] == "partition 1, ext4, as squashfs"
    assert (importer.root(shown) / "home/anna/mine").read_text() == "hers\n"


def test_the_kernel_on_a_boot_partition_of_fat(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    fat = tmp_path / "fat"
    with fat.open("wb") as out:
        out.truncate(16 * MIB)
    subprocess.run(["mkfs.fat", "-F", "16", fat], check=True, capture_output=True)
    kernel = machine / f"boot/vmlinuz-{RELEASE}"
    subprocess.run(["mcopy", "-i", fat, kernel, f"::/vmlinuz-{RELEASE}"], check=True)
    kernel.unlink()
    parts = [("uefi", fat), ("linux", ext4(machine, tmp_path / "ext4"))]
    source = disk(tmp_path / "disk", parts)
    assert "no vmlinuz" in importer.refused(source, "--boot-part", "0")
    assert importer(source, "--no-maintenance")["origin"]["kernel"] == RELEASE


SUBVOLUMES = """set -e
mkdir "$3" && mount -o loop "$2" "$3"
btrfs -q subvolume create "$3/@" && btrfs -q subvolume create "$3/@home"
cp -a "$1/." "$3/@/" && mv "$3/@/home/anna" "$3/@home/"
"""


def test_a_btrfs_with_subvolumes_is_packed_as_its_fstab_says(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    requires("mkfs.btrfs", "btrfs")
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel that knows btrfs: modprobe btrfs")
    name = "0b0b0b0b-0000-4000-8000-00000000000b"
    (machine / "etc/fstab").write_text(
        f"UUID={name} / btrfs subvol=@ 0 0\nUUID={name} /home btrfs subvol=/@home 0 0\n"
    )
    source = tmp_path / "btrfs"
    with source.open("wb") as out:
        out.truncate(128 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", "-U", name, source], check=True, capture_output=True)
    places = [str(machine), str(source), str(tmp_path / "m")]
    subprocess.run(["unshare", "--mount", "sh", "-c", SUBVOLUMES, "sh", *places], check=True)
    shown = importer(source, "--no-maintenance")
    assert shown["origin"]["root"] == "the disk, btrfs, as squashfs"
    assert (importer.root(shown) / "home/anna/mine").read_text() == "hers\n"


def luks(path: Path) -> Path:
    """What cryptsetup writes first, as far as anybody looks."""
    head = b"LUKS\xba\xbe" + struct.pack(">H", 1) + b"aes".ljust(32, b"\0")
    head += b"xts-plain64".ljust(32, b"\0") + b"sha256".ljust(32, b"\0")
    head = head.ljust(168, b"\0") + b"0b0b0b0b-0000-4000-8000-000000000000"
    path.write_bytes(head.ljust(2 * MIB, b"\0"))
    return path


def lvm(path: Path) -> Path:
    """What pvcreate writes first: a label with a checksum of LVM's own."""
    body = struct.pack("<I", 32) + b"LVM2 001" + b"0b0b0b" * 5 + b"0b"
    body = body.ljust(512 - 20, b"\0")
    crc = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    label = b"LABELONE" + struct.pack("<QI", 1, crc) + body
    path.write_bytes(bytes(512) + label + bytes(2 * MIB))
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def zeros(path: Path) -> Path:
    path.write_bytes(bytes(2 * MIB))
    return path


def two_systems(machine: Path, place: Path) -> Path:
    root = ext4(machine, place / "root")
    return disk(place / "disk", [("linux", root), ("linux", root)])


def cut_off(machine: Path, place: Path) -> Path:
    path = disk(place / "disk", [("linux", ext4(machine, place / "root"))])
    os.truncate(path, 8 * MIB)
    return path


def cut_off_without_a_table(machine: Path, place: Path) -> Path:
    path = ext4(machine, place / "root")
    os.truncate(path, 8 * MIB)
    return path


def damaged(machine: Path, place: Path) -> Path:
    """Nothing of its metadata is left but the superblock."""
    path = ext4(machine, place / "root")
    with path.open("r+b") as file:
        file.seek(2048)
        file.write(b"\xa5" * (2 * MIB))
    return path


def fat(_machine: Path, place: Path) -> Path:
    path = place / "fat"
    with path.open("wb") as out:
        out.truncate(16 * MIB)
    subprocess.run(["mkfs.fat", path], check=True, capture_output=True)
    return path


def of_large_sectors(machine: Path, place: Path) -> Path:
    """A GPT where a disk with 4096-byte sectors has it: sector 1 is not at byte 512."""
    path = disk(place / "disk", [("linux", ext4(machine, place / "root"))])
    with path.open("r+b") as file:
        file.seek(512)
        header = file.read(512)
        file.seek(512)
        file.write(bytes(512))
        file.seek(4096)
        file.write(header)
        file.seek(-512, os.SEEK_END)
        file.write(bytes(512))
    return path


def for_arm(machine: Path, place: Path) -> Path:
    (machine / "sbin/init").write_bytes(
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\2\0\xb7\0" + bytes(64)
    )
    return ext4(machine, place / "root")


def without_kernel(machine: Path, place: Path) -> Path:
    shutil.rmtree(machine / "lib/modules")
    return ext4(machine, place / "root")


def no_system(machine: Path, place: Path) -> Path:
    (place / "empty").mkdir()
    return disk(place / "disk", [("linux", ext4(place / "empty", place / "root", 4))])


def cut_off_at_work(machine: Path, place: Path, more: Path | None = None) -> Path:
    """A machine whose plug was pulled: what it wrote last is in the journal alone."""
    root = ext4(machine, place / "root")
    unclean = more or root
    change = ["debugfs", "-w", "-R", "feature needs_recovery", str(unclean)]
    subprocess.run(change, check=True, capture_output=True)
    return disk(place / "disk", [("linux", root), *([("linux", more)] if more else [])])


def cut_off_with_its_home(machine: Path, place: Path) -> Path:
    (machine / "etc/fstab").write_text("/dev/sda2 /home ext4 defaults 0 2\n")
    return cut_off_at_work(machine, place, ext4(None, place / "home", 4))


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nothing there": (lambda _m, p: p / "none", "No such file"),
    "an empty file": (lambda _m, p: empty(p / "x"), "is empty"),
    "no table": (lambda _m, p: zeros(p / "x"), "no partition table .* and no file system"),
    "an encrypted disk": (lambda _m, p: luks(p / "x"), r"encrypted \(LUKS\)"),
    "an encrypted partition": (
        lambda _m, p: disk(p / "x", [("linux", luks(p / "l"))]), r"partition 1 is encrypted"
    ),
    "a part of LVM": (
        lambda _m, p: disk(p / "x", [("linux", lvm(p / "l"))]), "partition 1 is part of LVM"
    ),
    "an empty partition": (
        lambda _m, p: disk(p / "x", [("linux", zeros(p / "z"))]), "no file system that is known"
    ),
    "no system": (no_system, r"holds no Linux system \(ext4\)"),
    "a journal not replayed": (
        cut_off_at_work, r"partition 1 \(ext4\) was not unmounted in order: .* shut it down"
    ),
    "that of its /home": (cut_off_with_its_home, r"partition 2 \(ext4\) was not unmounted"),
    "two systems": (two_systems, "partitions 1 and 2 hold a system each: .*--root-part"),
    "a cut-off disk": (cut_off, "its GPT is damaged, or the file is cut off"),
    "a cut-off file system": (cut_off_without_a_table, r"\(ext4\) is larger than its place: .*cut"),
    "sectors of 4096 bytes": (of_large_sectors, "a disk with sectors of 4096 bytes"),
    "a FAT stick": (fat, r"the disk holds no Linux system \(vfat\)"),
    "another machine's": (for_arm, "is a system for arm64"),
    "no kernel": (without_kernel, "has no kernel with modules: install one"),
    "this machine": (lambda _m, _p: Path("/"), "sudo pxed promote"),
    "a directory without a system": (lambda _m, p: p, "is no root of a system"),
    "a directory around the library": (lambda _m, p: p.parent, "has the library of images in it"),
    "no file at all": (lambda _m, _p: Path("/dev/null"), "is no directory, no file"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_a_seats_is_refused_in_one_line(
    importer: Importer, machine: Path, tmp_path: Path, what: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    make, says = REFUSED[what]
    assert re.search(says, importer.refused(make(machine, place)))


def test_a_damaged_file_system_is_said_to_be_that(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    said = importer.refused(damaged(machine, tmp_path), status=1)
    assert re.search(r"\(ext4\) cannot be mounted: .*: is it damaged\? fsck it in a copy$", said)
    assert str(importer.state) not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--root-part", "7"), "has no partition 7; there are 1, 2"),
        (("--boot-part", "7"), "there is no partition 7; there are 1, 2"),
        (("--kernel", "9"), "has no kernel 9; there is 6.1.0-1"),
        (("--exclude", "/srv"), "--format squashfs leaves out"),
        (("--exclude", "srv"), "must be an absolute path"),
        (("--released", "today"), "must be a date"),
        (("--cmdline", "a\nb"), "must be one line"),
    ],
)
def test_options_that_do_not_fit(
    importer: Importer, machine: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    root = ext4(machine, tmp_path / "root")
    source = disk(tmp_path / "disk", [("linux", root), ("linux", zeros(tmp_path / "z"))])
    assert says in importer.refused(source, *words)


def test_one_of_two_systems_is_chosen(importer: Importer, machine: Path, tmp_path: Path) -> None:
    shown = importer(two_systems(machine, tmp_path), "--root-part", "2", "--no-maintenance")
    assert shown["origin"]["root"] == "partition 2, ext4"


def test_a_disk_that_is_in_use_is_refused(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    source = disk(tmp_path / "disk", [("linux", ext4(machine, tmp_path / "root"))])
    loop = ["losetup", "--find", "--show", str(source)]
    name = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
    try:
        done = subprocess.run(importer.argv(source), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"is in use as {name}" in done.stderr
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


def nobody_has(device: Path) -> None:
    """Return when the last mount of it is gone: that may be after its program."""
    until = time.monotonic() + 60
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


def test_a_block_device_is_imported_and_one_that_is_mounted_refused(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    source, place = ext4(machine, tmp_path / "root"), tmp_path / "mnt"
    place.mkdir()
    loop = ["losetup", "--find", "--show", str(source)]
    name = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
    try:
        argv = importer.argv(Path(name), "--no-maintenance")
        mounted = 'mount "$1" "$2" && shift 2 && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounted, "sh", name, str(place), *argv],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "is in use, mounted or part of something else" in done.stderr
        nobody_has(Path(name))
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)
    copied = importer.state / "images/lab/1/root.img"
    assert copied.stat().st_size == source.stat().st_size


def test_too_small_a_disk_is_said_and_nothing_is_left(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    source = disk(tmp_path / "disk", [("linux", ext4(machine, tmp_path / "root"))])
    small = """mkdir -p "$1" && mount -t tmpfs -o size=64m small "$1" && cd "$1" && shift || exit
"$@"; status=$?; ls -A images; exit $status"""
    watched = ["sh", "-c", small, "sh", str(importer.state), *importer.argv(source)]
    done = subprocess.run(
        ["unshare", "--mount", *watched], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "MiB are free, and" in done.stderr
    assert "lab" not in done.stdout.split()


def test_a_dry_run_only_looks(importer: Importer, machine: Path) -> None:
    done = subprocess.run(
        [*importer.argv(machine, "--dry-run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Small 1, kernel 6.1.0-1; the root (squashfs) is packed" in done.stderr
    assert not (importer.state / "images/lab").exists()


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """An environment in which an import never comes further than its first initramfs."""
    program = tmp_path / "bin/zstd"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nparent=$PPID\nwhile kill -0 "$parent"; do sleep 0.1; done\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def begun(argv: list[str], env: dict[str, str]) -> "subprocess.Popen[str]":
    """An import that is at its initramfs, with the disk's root mounted."""
    process = subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "its initramfs" in line:
            return process
    raise AssertionError(process.wait())


def test_killed_it_leaves_no_mount_and_the_next_one_cleans(
    importer: Importer, machine: Path, tmp_path: Path, slow: dict[str, str]
) -> None:
    source = disk(tmp_path / "disk", [("linux", ext4(machine, tmp_path / "root"))])
    with begun(importer.argv(source), slow) as process:
        process.send_signal(signal.SIGKILL)
    no_loop_device(tmp_path)
    assert not (importer.state / "images/lab/1").exists()
    assert importer(source, "--no-maintenance")["version"] == "1"


def test_interrupted_it_says_so_and_leaves_nothing(
    importer: Importer, machine: Path, tmp_path: Path, slow: dict[str, str]
) -> None:
    source = disk(tmp_path / "disk", [("linux", ext4(machine, tmp_path / "root"))])
    with begun(importer.argv(source), slow) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "pxed: interrupted"
    assert not (importer.state / "images/lab").exists()
    importer.is_clean()


def test_beside_a_running_server_a_new_version_waits(room: Room, machine: Path) -> None:
    room.start()
    said = room.pxed("image", "import", str(machine), "--name", "lab", "--version", "2")
    assert "let clients boot it: pxed image use lab@2" in said
    room.boot(M1)
    assert room.client(M1)["image"] == "lab@1"
    room.pxed("image", "use", "lab@2")
    room.boot(M1)
    assert room.client(M1)["image"] == "lab@2"
    assert room.read(M1, 1)[:4] == b"hsqs"
    shown = json.loads(room.pxed("image", "show", "lab@2", "--json"))
    assert shown["origin"]["system"] == "Small 1"
    assert shown["diskless_only"] == ""
