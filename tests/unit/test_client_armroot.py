"""Looking into a root for another processor: links stay inside; what cannot be a seat's is said."""

import gzip
from pathlib import Path

import pytest

from pxed.client.armroot import ArmRoot, kernel_release, plain_kernel
from pxed.errors import UsageError
from tests import piroot


@pytest.fixture
def root(tmp_path: Path) -> ArmRoot:
    (tmp_path / "secret").write_text("outside")
    top = tmp_path / "root"
    (top / "usr/lib/modules").mkdir(parents=True)
    (top / "lib").symlink_to("usr/lib")
    (top / "etc").mkdir()
    piroot.put_system(top, {"bin/busybox": piroot.program()}, init="/bin/busybox")
    return ArmRoot(top)


@pytest.mark.parametrize(
    ("link", "name", "found"),
    [
        ("../../../../secret", "x", None),
        ("/secret", "x", None),
        ("/etc/../../etc/hostname", "x", "etc/hostname"),
        ("/etc", "x/hostname", "etc/hostname"),
        ("x", "x", None),
        ("hostname", "../../etc/hostname", "etc/hostname"),
        ("hostname", "etc/hostname/more", None),
    ],
)
def test_no_link_leads_out(root: ArmRoot, link: str, name: str, found: str | None) -> None:
    (root.top / "x").symlink_to(link)
    assert root.find(name) == (root.top / found if found else None)


def test_a_whole_system_for_arm64(root: ArmRoot) -> None:
    root.check()


@pytest.mark.parametrize(
    ("machine", "text"), [(62, "is for x86-64"), (40, "is for 32-bit ARM"), (5, "is for 5")]
)
def test_a_root_for_another_processor_is_refused(root: ArmRoot, machine: int, text: str) -> None:
    (root.top / "bin/busybox").write_bytes(piroot.program(machine))
    with pytest.raises(UsageError, match=text):
        root.check()


def test_a_directory_that_is_no_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no installed system: no /etc"):
        ArmRoot(tmp_path).check()


def test_the_boot_directory(root: ArmRoot) -> None:
    with pytest.raises(UsageError, match="--boot DIR"):
        root.boot_directory()
    piroot.put_boot(root.top / "boot", b"")
    assert root.boot_directory() == root.top / "boot"
    piroot.put_boot(root.top / "boot/firmware", b"")
    assert root.boot_directory() == root.top / "boot/firmware"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_kernel_says_its_release(tmp_path: Path, pack: type[bytes]) -> None:
    image = tmp_path / "kernel8.img"
    image.write_bytes(pack(piroot.kernel_image("6.6.31+rpt-rpi-v8")))
    assert kernel_release(image) == "6.6.31+rpt-rpi-v8"
    assert plain_kernel(image)[0x38:0x3C] == b"ARMd"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no 64-bit ARM kernel"),
        (b"MZ" + bytes(100), "no 64-bit ARM kernel"),
        (gzip.compress(b"x" * 99)[:-9], "cannot be read"),
        (b"\x1f\x8b\x08\0" + bytes(20), "cannot be read|no 64-bit"),
        (piroot.kernel_image("")[:64], "says no Linux version"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, data: bytes, text: str) -> None:
    image = tmp_path / "kernel8.img"
    image.write_bytes(data)
    with pytest.raises(UsageError, match=text):
        kernel_release(image)


def modules(root: ArmRoot, release: str, names: str) -> None:
    folder = root.top / "usr/lib/modules" / release
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("".join(f"kernel/{n}.ko.xz:\n" for n in names.split()))
    (folder / "modules.builtin").write_text("kernel/fs/squashfs/squashfs.ko\n")


def test_kernel_and_modules_must_be_of_one_system(root: ArmRoot, tmp_path: Path) -> None:
    image = tmp_path / "kernel8.img"
    image.write_bytes(piroot.kernel_image("6.6.31"))
    modules(root, "6.1.21", "aoe overlay")
    with pytest.raises(UsageError, match=r"is Linux 6\.6\.31, and /lib/modules has 6\.1\.21"):
        root.kernel(image)
    modules(root, "6.6.31", "aoe overlay")  # squashfs is built in
    assert root.kernel(image).release == "6.6.31"


def test_a_kernel_without_aoe_is_refused(root: ArmRoot, tmp_path: Path) -> None:
    image = tmp_path / "kernel8.img"
    image.write_bytes(piroot.kernel_image("6.6.31"))
    modules(root, "6.6.31", "overlay")
    with pytest.raises(UsageError, match="no aoe driver"):
        root.kernel(image)


def test_what_the_kernel_was_built_with(root: ArmRoot) -> None:
    assert root.kernel_options("1") == frozenset()
    text = (
        'CONFIG_SQUASHFS_XZ=y\n# CONFIG_SQUASHFS_ZSTD is not set\nCONFIG_AOE=m\nCONFIG_NAME="x"\n'
    )
    place = root.top / "usr/lib/modules/1/kernel/kernel"
    place.mkdir(parents=True)
    (place / "configs.ko").write_bytes(
        b"elf IKCFG_ST" + gzip.compress(text.encode()) + b"IKCFG_ED rest"
    )
    assert root.kernel_options("1") == {"SQUASHFS_XZ", "AOE"}
    (root.top / "boot").mkdir()
    (root.top / "boot/config-1").write_text("CONFIG_OTHER=y\n")
    assert root.kernel_options("1") == {"OTHER"}


def test_a_damaged_list_of_options_says_nothing(root: ArmRoot) -> None:
    place = root.top / "usr/lib/modules/1/kernel/kernel"
    place.mkdir(parents=True)
    (place / "configs.ko").write_bytes(b"IKCFG_STrubbishIKCFG_ED")
    assert root.kernel_options("1") == frozenset()


def test_a_busybox_for_another_processor_is_none(root: ArmRoot) -> None:
    own = root.busybox()
    assert own is not None
    assert list(own) == ["bin/busybox"]
    (root.top / "bin/busybox").write_bytes(piroot.program(62))
    assert root.busybox() is None
