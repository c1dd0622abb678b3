"""What config.txt means for each model, and what a Raspberry Pi's boot directory lacks."""

from pathlib import Path

import pytest

from pxed import pi
from tests import piroot

CONFIG = "[all]\narm_64bit=1\nkernel=kernel8.img\ninitramfs initramfs followkernel\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A boot directory that both models boot from."""
    piroot.put_boot(tmp_path, b"kernel")
    (tmp_path / "initramfs").write_bytes(b"initramfs")
    (tmp_path / "config.txt").write_text(CONFIG)
    (tmp_path / "cmdline.txt").write_text("aoe.aoe_deadsecs=0 pxed.shelf=17 console=tty1\n")
    return tmp_path


def said(tree: Path, shelf: int | None = 17) -> list[str]:
    return [str(lack) for lack in pi.lacks(tree, shelf)]


def test_a_complete_tree_lacks_nothing(tree: Path) -> None:
    assert said(tree) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("start4.elf", "4B: start4.elf is missing"),
        ("fixup4.dat", "4B: fixup4.dat is missing"),
        ("bcm2711-rpi-4-b.dtb", "4B: bcm2711-rpi-4-b.dtb is missing"),
        ("bootcode.bin", "3B+: bootcode.bin is missing"),
        ("start.elf", "3B+: start.elf is missing"),
        ("bcm2710-rpi-3-b-plus.dtb", "3B+: bcm2710-rpi-3-b-plus.dtb is missing"),
        ("kernel8.img", "the kernel kernel8.img is missing"),
        ("initramfs", "the initramfs initramfs is missing"),
        ("config.txt", "config.txt is missing, so no initramfs is loaded"),
        ("cmdline.txt", "cmdline.txt is missing, so no root is named"),
    ],
)
def test_each_file_is_missed(tree: Path, name: str, text: str) -> None:
    (tree / name).unlink()
    assert said(tree) == [text]


def test_the_name_that_linux_itself_gives_the_device_tree_will_do(tree: Path) -> None:
    (tree / "bcm2710-rpi-3-b-plus.dtb").rename(tree / "bcm2837-rpi-3-b-plus.dtb")
    assert said(tree) == []


def test_an_initramfs_line_for_one_model_does_not_help_another(tree: Path) -> None:
    (tree / "config.txt").write_text("[pi4]\ninitramfs initramfs followkernel\n")
    text = "3B+: config.txt has no initramfs line, so the root is never looked for"
    assert said(tree) == [text]


def test_the_firmwares_own_choice_of_an_initramfs(tree: Path) -> None:
    (tree / "config.txt").write_text("auto_initramfs=1\n")
    assert said(tree) == []  # initramfs8 is there
    (tree / "initramfs8").unlink()
    assert said(tree) == ["the initramfs initramfs8 is missing"]


@pytest.mark.parametrize(
    ("cmdline", "text"),
    [
        ("console=tty1 root=PARTUUID=1-02 rootwait", "cmdline.txt names no root over AoE"),
        ("", "cmdline.txt has 0 lines, and only the first counts"),
        ("pxed.shelf=17\nquiet", "cmdline.txt has 2 lines, and only the first counts"),
        ("pxed.shelf=16", "cmdline.txt says pxed.shelf=16, and its class has shelf 17"),
    ],
)
def test_a_command_line_that_leads_to_no_root(tree: Path, cmdline: str, text: str) -> None:
    (tree / "cmdline.txt").write_text(cmdline + "\n")
    assert text in said(tree)


@pytest.mark.parametrize(
    "cmdline",
    [
        "root=/dev/etherd/e17.1 ro",
        "root=live:AOEINTERFACE=e17.1",
        "pxed.root=e17.1 pxed.config=e17.3",
    ],
)
def test_other_words_for_a_root_over_aoe(tree: Path, cmdline: str) -> None:
    (tree / "cmdline.txt").write_text(cmdline + "\n")
    assert said(tree) == []


def test_any_shelf_will_do_where_none_is_asked_for(tree: Path) -> None:
    (tree / "cmdline.txt").write_text("pxed.shelf=99\n")
    assert said(tree, None) == []


def test_what_keeps_the_firmware_from_the_kernel(tree: Path) -> None:
    (tree / "config.txt").write_text(CONFIG + "os_prefix=current/\narm_64bit=0\n")
    assert said(tree) == [
        "config.txt looks for the kernel below os_prefix=current/",
        "config.txt has arm_64bit=0, and the kernel is a 64-bit one",
    ]


def test_sections() -> None:
    text = (
        "a=1\n[pi3]\nb=3\n[pi3+]\nc=3+\n[pi4]\nb=4\n[0x1234]\na=2\n[all]\n#d=5\ne = 6\n[none]\nf=7"
    )
    assert pi.settings(text, "3B+") == {"a": "1", "b": "3", "c": "3+", "e": "6"}
    assert pi.settings(text, "4B") == {"a": "1", "b": "4", "e": "6"}


def test_what_is_no_text_is_no_trouble(tree: Path) -> None:
    (tree / "config.txt").write_bytes(bytes(range(256)))
    (tree / "cmdline.txt").write_bytes(b"\xff\xfe\n")
    assert "cmdline.txt names no root over AoE" in said(tree)
