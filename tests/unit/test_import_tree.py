"""A root from elsewhere: no link leads out of it; what cannot be a seat's is refused by name."""

import lzma
import struct
from pathlib import Path

import pytest

from pxed.client.partitions import Mount, Partition, own_mounts
from pxed.client.seat import stage_kernel, unpacked
from pxed.client.tree import Tree, check_root, kernel_in
from pxed.errors import UsageError

RELEASE = "6.1.0-1-amd64"


def bzimage(flags: int = 1, magic: bytes = b"HdrS") -> bytes:
    data = bytearray(2048)
    data[0x202:0x206] = magic
    struct.pack_into("<H", data, 0x236, flags)
    return bytes(data)


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    dep = "kernel/drivers/block/aoe/aoe.ko.xz: kernel/net/core.ko\nkernel/net/core.ko:\n"
    files = {
        "etc/os-release": b'PRETTY_NAME="Small 1"\n', "usr/sbin/init": elf(62),
        f"usr/lib/modules/{RELEASE}/modules.dep": dep.encode(),
        f"usr/lib/modules/{RELEASE}/kernel/drivers/block/aoe/aoe.ko.xz": lzma.compress(b"driver"),
        f"usr/lib/modules/{RELEASE}/kernel/net/core.ko": b"core",
        f"boot/vmlinuz-{RELEASE}": bzimage(),
    }  # fmt: skip
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "sbin").symlink_to("usr/sbin")
    (root / "lib").symlink_to("/usr/lib")  # absolute: in the root, not in this machine's
    return root


def test_links_stay_inside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name, target in (
        ("a", "/../../secret"), ("b", "../secret"), ("c", str(tmp_path / "secret")),
        ("loop", "loop"), ("d", "../" * 30 + "etc/passwd"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
        assert Tree(root).file(name) is None
        assert Tree(root).read(name) == b""
    (root / "up").symlink_to("/../etc/../etc/os-release")
    assert Tree(root).text("up").startswith("PRETTY_NAME")
    assert Tree(root).find("etc/os-release/x") is None


def test_a_system_is_known_with_its_kernel(root: Path) -> None:
    tree = Tree(root)
    assert tree.is_system()
    assert tree.title() == "Small 1"
    check_root(tree, "it")
    assert kernel_in([tree], "it") == (RELEASE, root / f"boot/vmlinuz-{RELEASE}")


def test_the_newest_kernel_that_seats_can_boot_is_taken(root: Path) -> None:
    modules = root / "usr/lib/modules"
    for release, dep in (("6.9.0-1", "kernel/fs/ext4.ko:\n"), ("6.10.0-1", "kernel/aoe.ko:\n")):
        (modules / release).mkdir()
        (modules / release / "modules.dep").write_text(dep)
        (modules / release / "vmlinuz").write_bytes(bzimage())
    assert kernel_in([Tree(root)], "it")[0] == "6.10.0-1"
    assert kernel_in([Tree(root)], "it", RELEASE)[0] == RELEASE
    with pytest.raises(UsageError, match="no kernel 5; there is 6"):
        kernel_in([Tree(root)], "it", "5")


def test_a_kernel_on_its_own_boot_partition_is_found(root: Path, tmp_path: Path) -> None:
    place = tmp_path / f"esp/deadbeef/{RELEASE}/linux"
    place.parent.mkdir(parents=True)
    (root / f"boot/vmlinuz-{RELEASE}").rename(place)
    with pytest.raises(UsageError, match=f"no vmlinuz of kernel {RELEASE}"):
        kernel_in([Tree(root)], "it")
    assert kernel_in([Tree(root), Tree(tmp_path / "esp")], "it") == (RELEASE, place)


def test_no_kernel_is_said(root: Path) -> None:
    (root / f"usr/lib/modules/{RELEASE}/modules.dep").unlink()
    with pytest.raises(UsageError, match="has no kernel with modules: install one in it"):
        kernel_in([Tree(root)], "it")


def test_a_kernel_without_aoe_is_said(root: Path) -> None:
    (root / f"usr/lib/modules/{RELEASE}/modules.dep").write_text("kernel/fs/ext4.ko:\n")
    with pytest.raises(UsageError, match=r"no AoE driver .*linux-image-amd64"):
        kernel_in([Tree(root)], "it")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bzimage(0), "32-bit kernel"),
        (bzimage(magic=b"none"), "no bzImage"),
        (bytes(0x38) + b"ARM\x64" + bytes(2000), "for arm64"),
    ],
)
def test_a_kernel_for_another_machine_is_refused(root: Path, data: bytes, says: str) -> None:
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(data)
    with pytest.raises(UsageError, match=says):
        kernel_in([Tree(root)], "it")


@pytest.mark.parametrize(("machine", "name"), [(183, "arm64"), (40, "arm"), (999, "machine 999")])
def test_a_system_for_another_machine_is_refused(root: Path, machine: int, name: str) -> None:
    (root / "usr/sbin/init").write_bytes(elf(machine))
    with pytest.raises(UsageError, match=f"is a system for {name}, and seats of class x86"):
        check_root(Tree(root), "it")


def test_a_root_without_init_is_refused(root: Path) -> None:
    (root / "usr/sbin/init").unlink()
    with pytest.raises(UsageError, match="no /sbin/init: install systemd-sysv"):
        check_root(Tree(root), "it")


def staged(root: Path, tmp_path: Path) -> Path:
    vmlinuz = root / f"boot/vmlinuz-{RELEASE}"
    return stage_kernel(Tree(root), RELEASE, vmlinuz, tmp_path / "kernel").modules


def test_modules_are_copied_unpacked(root: Path, tmp_path: Path) -> None:
    modules = staged(root, tmp_path)
    assert (modules / "kernel/drivers/block/aoe/aoe.ko").read_bytes() == b"driver"
    assert (modules / "kernel/net/core.ko").read_bytes() == b"core"
    assert ".xz" not in (modules / "modules.dep").read_text()


def test_a_list_of_modules_that_leads_out_is_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.ko").write_text("secret")
    dep = root / f"usr/lib/modules/{RELEASE}/modules.dep"
    for evil in ("../../../../../../secret.ko", str(tmp_path / "secret.ko")):
        with dep.open("a") as out:
            out.write(f"kernel/overlay.ko: {evil}\n{evil}:\n")
    (root / f"usr/lib/modules/{RELEASE}/kernel/overlay.ko").symlink_to(tmp_path / "secret.ko")
    modules = staged(root, tmp_path)
    assert all(b"secret" not in p.read_bytes() for p in modules.rglob("*") if p.is_file())


def test_a_module_that_is_a_link_out_is_missing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.ko").write_text("secret")
    core = root / f"usr/lib/modules/{RELEASE}/kernel/net/core.ko"
    core.unlink()
    core.symlink_to(tmp_path / "secret.ko")
    with pytest.raises(UsageError, match=r"core\.ko is missing or empty"):
        staged(root, tmp_path)


def test_a_damaged_module_is_said(root: Path, tmp_path: Path) -> None:
    place = root / f"usr/lib/modules/{RELEASE}/kernel/drivers/block/aoe/aoe.ko.xz"
    place.write_bytes(b"\xfd7zXZ\0 no")
    with pytest.raises(UsageError, match=r"aoe\.ko\.xz is damaged"):
        staged(root, tmp_path)
    assert unpacked("plain.ko", b"x") == b"x"


PARTS = [
    Partition(1, 0, 1, fs="vfat", names=frozenset({"uuid=0b0b-0b0b"})),
    Partition(2, 0, 1, fs="ext4", names=frozenset({"uuid=aa"})),
    Partition(3, 0, 1, fs="xfs", names=frozenset({"partlabel=var"})),
    Partition(4, 0, 1, fs="btrfs", names=frozenset({"label=data"})),
]


def test_fstab_says_what_else_is_of_the_system() -> None:
    fstab = """# comment
UUID=AA / ext4 errors=remount-ro 0 1
UUID=0B0B-0B0B /boot/efi vfat umask=77 0 1
PARTLABEL=var /var xfs defaults 0 2
LABEL=data /home btrfs rw,subvol=/@home 0 2
/dev/vdb1 /srv ext4 defaults 0 2
/dev/sda9 /mnt/x ext4 defaults 0 2
server:/x /opt nfs defaults 0 0
UUID=bb none swap sw 0 0
broken
"""
    mine, elsewhere = own_mounts(fstab, PARTS, (PARTS[1], ""))
    assert mine == [
        Mount("/boot/efi", PARTS[0]), Mount("/home", PARTS[3], "@home"), Mount("/var", PARTS[2]),
    ]  # fmt: skip
    assert elsewhere == ["/srv"]


def test_a_partition_by_its_number_and_one_that_is_not_here() -> None:
    mine, elsewhere = own_mounts(
        "/dev/nvme0n1p3 /usr xfs d\nUUID=cc /home ext4 d\n", PARTS, (PARTS[1], "")
    )
    assert mine == [Mount("/usr", PARTS[2])]
    assert elsewhere == ["/home"]
