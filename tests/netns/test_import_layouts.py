"""Layouts of disks and trees as distributions and their people make them, imported."""

import os
import socket
import stat
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import requires
from tests.netns.machines import MIB, RELEASE, Importer, disk, ext4, importer, machine

__all__ = ["importer", "machine"]

pytestmark = pytest.mark.netns

ID = "0b0b0b0b-0000-4000-8000-00000000000b"
XBOOTLDR = "bc13c2ff-59e6-4262-a352-b275fd6f7172"


def filled(tool: Sequence[str], kind: str, source: Path, target: Path, then: str = "") -> Path:
    """A file system of ``kind`` with the files below ``source``, made with its own tools."""
    requires(tool[0])
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"needs a kernel that knows {kind}: modprobe {kind}")
    with target.open("wb") as out:
        out.truncate(320 * MIB)
    subprocess.run([*tool, str(target)], check=True, capture_output=True)
    where = target.with_name("mounted")
    where.mkdir()
    text = 'set -e; mount -o loop "$2" "$3"; cp -a "$1/." "$3/"\n' + then
    argv = ["unshare", "--mount", "sh", "-c", text, "sh", str(source), str(target), str(where)]
    subprocess.run(argv, check=True)
    where.rmdir()
    return target


def separate_boot(machine: Path, place: Path, kind: str = "linux") -> Path:
    """A disk with /boot, then the root."""
    (place / "boot").mkdir()
    kernel = machine / f"boot/vmlinuz-{RELEASE}"
    kernel.rename(place / "boot" / kernel.name)
    boot = ext4(place / "boot", place / "boot.ext4", 8)
    subprocess.run(["tune2fs", "-U", ID, str(boot)], check=True, capture_output=True)
    return disk(place / "disk", [(kind, boot), ("linux", ext4(machine, place / "root.ext4"))])


@pytest.mark.parametrize("line", [f"/dev/disk/by-uuid/{ID}", f"UUID={ID}", "/dev/xvda1"])
def test_a_boot_partition_is_found_however_fstab_calls_it(
    importer: Importer, machine: Path, tmp_path: Path, line: str
) -> None:
    """by-uuid is how Ubuntu's installer writes it."""
    (machine / "etc/fstab").write_text(f"{line} /boot ext4 defaults 0 1\n")
    source = separate_boot(machine, tmp_path)
    assert importer(source, "--no-maintenance")["origin"]["kernel"] == RELEASE


def test_a_boot_partition_that_only_its_type_names(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    source = separate_boot(machine, tmp_path, XBOOTLDR)
    assert importer(source, "--no-maintenance")["origin"]["kernel"] == RELEASE


def test_a_usr_of_its_own_is_part_of_the_root(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    """All that makes it a system is there: the root alone has only /etc."""
    usr = tmp_path / "usr"
    usr.mkdir()
    for name in ("sbin", "lib"):
        (machine / name).rename(usr / name)
        (machine / name).symlink_to(f"usr/{name}")
    (machine / "etc/os-release").rename(usr / "lib/os-release")
    (machine / "etc/os-release").symlink_to("../usr/lib/os-release")
    (machine / "usr").mkdir()
    (machine / "etc/fstab").write_text(
        f"/dev/sda1 / ext4 defaults 0 1\nUUID={ID} /usr ext4 ro 0 2\n"
    )
    part = ext4(usr, tmp_path / "usr.ext4")
    subprocess.run(["tune2fs", "-U", ID, str(part)], check=True, capture_output=True)
    source = disk(
        tmp_path / "disk", [("linux", ext4(machine, tmp_path / "root.ext4")), ("linux", part)]
    )
    shown = importer(source, "--no-maintenance")
    assert (shown["origin"]["system"], shown["origin"]["kernel"]) == ("Small 1", RELEASE)
    root = importer.root(shown)
    assert (root / "home/anna/mine").read_text() == "hers\n"
    assert (root / "usr/sbin/init").is_file()


def test_an_xfs_root_is_packed(importer: Importer, machine: Path, tmp_path: Path) -> None:
    source = filled(["mkfs.xfs", "-q"], "xfs", machine, tmp_path / "xfs", 'umount "$3"')
    shown = importer(source, "--no-maintenance")
    assert shown["origin"]["root"] == "the disk, xfs, as squashfs"
    assert (importer.root(shown) / "home/anna/mine").read_text() == "hers\n"


def test_an_xfs_whose_log_was_not_replayed_is_refused(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    """The plug was pulled: it is a copy of what was on the disk at that moment."""
    then = 'sync; echo late > "$3/home/anna/late"; sync "$3/home/anna/late"; cp "$2" "$2.cut"'
    filled(["mkfs.xfs", "-q"], "xfs", machine, tmp_path / "xfs", then)
    said = importer.refused(tmp_path / "xfs.cut")
    assert "the disk (xfs) was not unmounted in order: start that machine and shut it down" in said


def test_btrfs_snapshots_are_not_for_seats_and_subvolumes_have_numbers(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    (machine / "etc/fstab").write_text(
        f"UUID={ID} / btrfs subvol=@ 0 0\nUUID={ID} /home btrfs subvolid=257 0 0\n"
    )
    then = """
    cd "$3"; btrfs -q subvolume create @; btrfs -q subvolume create @home
    test "$(btrfs inspect-internal rootid @home)" = 257
    for each in bin boot etc home lib sbin srv swapfile tmp; do
        [ ! -e "$each" ] || mv "$each" @/
    done
    mv @/home/anna @home/; mkdir @/.snapshots; btrfs -q subvolume snapshot @ @/.snapshots/1
    cd /; umount "$3"
    """
    tool = ["mkfs.btrfs", "-q", "-U", ID]
    source = filled(tool, "btrfs", machine, tmp_path / "btrfs", then)
    root = importer.root(importer(source, "--no-maintenance"))
    assert (root / "home/anna/mine").read_text() == "hers\n"
    assert list((root / ".snapshots").iterdir()) == []


def test_another_partition_that_cannot_be_read_here_is_no_matter(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    data = ext4(None, tmp_path / "data")
    with data.open("r+b") as file:  # groups that are not there
        file.seek(1024 + 1024)
        file.write(b"\xff" * 4096)
    source = disk(
        tmp_path / "disk", [("linux", data), ("linux", ext4(machine, tmp_path / "root.ext4"))]
    )
    assert importer(source, "--no-maintenance")["origin"]["root"] == "partition 2, ext4"


ODD = b"caf\xe9 \xff"
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, who)
    for tag, perm, who in ((1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF),
                           (0x10, 4, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))
)  # fmt: skip


def odd(root: Path) -> None:
    """What trees have that copies lose."""
    here = root / "opt"
    here.mkdir(exist_ok=True)
    (here / "one").write_text("linked\n")
    os.link(here / "one", here / "two")
    (here / "ping").write_text("")
    os.setxattr(here / "ping", "security.capability", CAPABILITY)
    os.setxattr(here / "ping", "user.note", b"said")
    with (here / "sparse").open("wb") as out:
        out.truncate(5 << 30)
        out.seek(-3, os.SEEK_END)
        out.write(b"end")
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(here / "pipe")
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(here / "socket"))
    Path(os.fsdecode(os.fsencode(here) + b"/" + ODD)).write_text("odd\n")
    (here / "setuid").write_text("")
    (here / "setuid").chmod(0o4755)


def test_what_trees_have_that_copies_lose_is_kept(importer: Importer, machine: Path) -> None:
    odd(machine)
    here = importer.root(importer(machine, "--no-maintenance")) / "opt"
    assert (here / "one").stat().st_ino == (here / "two").stat().st_ino
    assert os.getxattr(here / "ping", "security.capability") == CAPABILITY
    assert os.getxattr(here / "ping", "user.note") == b"said"
    sparse = (here / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks < 1000) == (5 << 30, True)
    with (here / "sparse").open("rb") as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"end"
    assert (here / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((here / "pipe").stat().st_mode)
    assert stat.S_ISSOCK((here / "socket").stat().st_mode)
    assert Path(os.fsdecode(os.fsencode(here) + b"/" + ODD)).read_text() == "odd\n"
    assert stat.S_IMODE((here / "setuid").stat().st_mode) == 0o4755


def test_an_acl_that_a_squashfs_cannot_have_is_said(importer: Importer, machine: Path) -> None:
    os.setxattr(machine / "home/anna/mine", "system.posix_acl_access", ACL)
    done = subprocess.run(
        importer.argv(machine, "--no-maintenance"), capture_output=True, text=True, check=True
    )
    assert "access lists (ACL)" in done.stdout + done.stderr


def test_what_is_left_out_is_left_out_with_dots_and_only_a_star_is_a_wildcard(
    importer: Importer, machine: Path
) -> None:
    for name in ("tmp/.secret", "boot/.hidden", "srv/[a]", "srv/a", "srv/b?c", "srv/bxc", "srv/.d",
                 "opt/.keys", "opt/keys"):  # fmt: skip
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text("")
    words = ("--exclude", "/srv/[a]", "--exclude", "/srv/b?c", "--exclude", "/opt/*")
    root = importer.root(importer(machine, "--no-maintenance", *words))
    assert sorted(path.name for path in (root / "srv").iterdir()) == [".d", "a", "bxc", "private"]
    assert [list((root / name).iterdir()) for name in ("tmp", "boot", "opt")] == [[], [], []]


def test_a_title_that_a_terminal_would_obey(importer: Importer, machine: Path) -> None:
    (machine / "etc/os-release").write_bytes(b'PRETTY_NAME="Evil \x1b]0;x\x07\xff"\n')
    origin = importer(machine, "--no-maintenance")["origin"]
    assert origin["system"] == "Evil ?]0;x?\ufffd"


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x1b[31m"])
def test_a_source_whose_name_is_no_text_is_refused(
    importer: Importer, tmp_path: Path, name: bytes
) -> None:
    source = tmp_path / os.fsdecode(name)
    source.write_bytes(b"x")
    assert "call it by a name that is plain text" in importer.refused(source)
