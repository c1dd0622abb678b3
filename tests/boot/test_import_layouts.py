"""An installed Debian on disks as other installers make them, imported and booted. Long."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.lab.lab import Lab
from tests.boot.conftest import PROGRAMS
from tests.boot.debian import installed, power_on
from tests.boot.test_import import PACKAGES, is_a_seat, serve
from tests.conftest import requires
from tests.netns.test_import_layouts import odd

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(1200)]

BOOT_ID, ROOT_ID = (f"0b0b0b0b-0000-4000-8000-00000000000{n}" for n in (1, 2))
FILES = {
    "etc/hostname": "golden\n", "etc/machine-id": "deadbeef" * 4 + "\n",
    "home/anna/mine": "from the image\n",
    "etc/network/interfaces": "auto lo\niface lo inet loopback\nauto ens3\n"
    "iface ens3 inet static\n address 10.77.0.1/24\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of an installed machine, with all that copies lose."""
    requires(*PROGRAMS, "mmdebstrap", "qemu-img", "losetup")
    place = tmp_path_factory.mktemp("machine")
    root = installed(place, PACKAGES)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    odd(root)
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


# Into the partition of the disk $1 that begins at byte $2 and has $3 bytes: $4 makes the file
# system, $5 is the tree, $6 what is done then, in the mounted file system.
FILL = r"""set -eu
loop=$(losetup --find --show --offset "$2" --sizelimit "$3" "$1")
trap 'cd /; umount "$1.mounted" 2> /dev/null || :; losetup --detach "$loop"' EXIT
$4 "$loop" > /dev/null
mkdir -p "$1.mounted"
mount "$loop" "$1.mounted"
cp -a --sparse=always "$5/." "$1.mounted/"
cd "$1.mounted"
eval "$6"
"""


def fill(disk: Path, start: int, size: int, make: str, tree: Path, then: str = "") -> None:
    """``start`` and ``size`` in MiB."""
    kind = make.split()[0].removeprefix("mkfs.")
    requires(make.split()[0])
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"needs a kernel that knows {kind}: modprobe {kind}")
    words = [str(disk), str(start << 20), str(size << 20), make, str(tree), then]
    subprocess.run(["unshare", "--mount", "sh", "-c", FILL, "sh", *words], check=True)


def new(disk: Path, size: int, table: str) -> Path:
    with disk.open("wb") as out:
        out.truncate(size << 20)
    subprocess.run(["sfdisk", "-q", str(disk)], input=table, text=True, check=True)
    return disk


def test_gpt_with_boot_of_its_own_and_an_xfs_root_as_compressed_qcow2(
    lab: Lab, root: Path, tmp_path: Path
) -> None:
    """As Ubuntu's server installer calls them."""
    fstab = f"/dev/disk/by-uuid/{ROOT_ID} / xfs defaults 0 1\n"
    fstab += f"/dev/disk/by-uuid/{BOOT_ID} /boot ext4 defaults 0 1\n/swap.img none swap sw 0 0\n"
    (root / "etc/fstab").write_text(fstab)
    table = "label: gpt\nstart=1MiB,size=16MiB,type=uefi\nstart=17MiB,size=200MiB,type=linux\n"
    raw = new(tmp_path / "raw", 1700, f"{table}start=217MiB,size=1480MiB,type=linux\n")
    fill(raw, 17, 200, f"mkfs.ext4 -q -U {BOOT_ID}", root / "boot")
    fill(raw, 217, 1480, f"mkfs.xfs -q -m uuid={ROOT_ID}", root, "rm -rf boot/*")
    source = tmp_path / "golden.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, source], check=True)
    raw.unlink()
    server = serve(lab, source, "--compression", "lz4", "--no-maintenance")
    seat = lab.add_client(firmware="uefi", memory=1024)
    power_on(seat)
    is_a_seat(server, seat)
    assert seat.shell("cd /opt && stat -c %h one two && tail -c 3 sparse") == "2\n2\nend"
    kinds = "character special file\nfifo\nsocket\n"
    assert seat.shell("cd /opt && stat -c %F null pipe socket") == kinds
    assert seat.shell(r"cat /opt/$(printf 'caf\351')*") == "odd\n"


def test_mbr_with_a_btrfs_root_in_subvolumes_on_a_logical_partition(
    lab: Lab, root: Path, tmp_path: Path
) -> None:
    requires("btrfs")
    fstab = "".join(f"UUID={ROOT_ID} {path} btrfs subvol=/{name},compress=zstd 0 0\n"
                    for path, name in (("/", "@"), ("/home", "@home")))  # fmt: skip
    (root / "etc/fstab").write_text(fstab)
    table = "label: dos\nstart=1MiB,size=8MiB,type=82\nstart=9MiB,type=5\n"
    source = new(tmp_path / "disk", 1700, f"{table}start=10MiB,size=1680MiB,type=83\n")
    then = """
    btrfs -q subvolume create @; btrfs -q subvolume create @home
    for each in *; do case $each in @*) ;; *) mv "$each" @/ ;; esac; done
    mv @/home/* @home/
    """
    fill(source, 10, 1680, f"mkfs.btrfs -q -U {ROOT_ID}", root, then)
    server = serve(lab, source, "--compression", "lz4", "--no-maintenance")
    seat = lab.add_client(memory=1024)
    power_on(seat)
    is_a_seat(server, seat)
