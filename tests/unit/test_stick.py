"""``pxed image stick`` and the disks behind it, without a machine."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pxed.cli import main
from pxed.client.bootloader import archive, slot_config
from pxed.client.minimal import build_minimal
from pxed.client.tfm import build_stick
from pxed.errors import UsageError
from tests.conftest import requires


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("mksquashfs", "mcopy", "syslinux", "grub-mkimage", "sfdisk", root=False)
    directory = tmp_path_factory.mktemp("state") / "images/lab/1.0"
    build_minimal(directory, version="1.0", maintenance=True, released="2026-11-25")
    return directory


def partitions(disk: Path) -> dict[str, bytes]:
    """The first sector but one of each partition, by name."""
    said = subprocess.run(["sfdisk", "--json", str(disk)], check=True, capture_output=True)
    raw = disk.read_bytes()
    return {
        part["name"]: raw[part["start"] * 512 : (part["start"] + part["size"]) * 512]
        for part in json.loads(said.stdout)["partitiontable"]["partitions"]
    }


def test_the_maintenance_disk_has_what_is_installed(image: Path) -> None:
    parts = partitions(image / "tfm.img")
    assert list(parts) == ["boot", "pxed-payload"]
    release = dict(
        line.split("=") for line in parts["pxed-payload"][512:1024].rstrip(b"\0").decode().split()
    )
    assert (release["name"], release["version"], release["released"]) == (
        "lab", "1.0", "2026-11-25",
    )  # fmt: skip
    assert int(release["root_size"]) == (image / "root.squashfs").stat().st_size
    assert not any(parts["pxed-payload"][int(release["boot_size"]) :])
    manifest = json.loads((image / "manifest.json").read_text())
    assert manifest["devices"]["tfm"] == "tfm.img"


def test_a_stick_has_the_root_and_the_orders_too(image: Path, tmp_path: Path) -> None:
    build_stick(image, tmp_path / "stick", b"pxed-orders 1\nunattended=yes\n")
    parts = partitions(tmp_path / "stick")
    assert list(parts) == ["boot", "pxed-payload", "pxed-os", "pxed-orders"]
    root = (image / "root.squashfs").read_bytes()
    assert parts["pxed-os"][: len(root)] == root
    assert parts["pxed-orders"].startswith(b"pxed-orders 1\nunattended=yes\n\0")
    assert list(tmp_path.iterdir()) == [tmp_path / "stick"]


def test_the_command_writes_a_stick(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "lab.img"
    state = image.parents[2]
    argv = ["image", "stick", "lab@1.0", str(target), "--state-dir", str(state)]
    done = CliRunner().invoke(main, [*argv, "--unattended", "--supported-until", "2027-12-31"])
    assert done.exit_code == 0, done.output
    orders = partitions(target)["pxed-orders"].rstrip(b"\0").decode().splitlines()
    assert orders[1:] == ["unattended=yes", "wipe=no", "disk=only", "until=2027-12-31",
                          "released=2026-11-25"]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [["--wipe"], ["--supported-until", "soon"], ["--disk", "/dev/sda"]]
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    image: Path, tmp_path: Path, wrong: list[str]
) -> None:
    target = tmp_path / "lab.img"
    argv = ["image", "stick", "lab", str(target), "--state-dir", str(image.parents[2]), *wrong]
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 2
    assert not target.exists()


def test_an_image_without_a_maintenance_disk_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        '{"name": "a", "version": "1", "devices": {"boot": "b", "root": "r"}}'
    )
    with pytest.raises(UsageError, match="build it again"):
        build_stick(tmp_path, tmp_path / "stick")


def test_grub_is_told_each_word_as_it_is() -> None:
    said = slot_config("quiet x={a} y=$b").decode()
    assert "'quiet' 'x={a}' 'y=$b' \"pxed.local=$id\" \"pxed.slot=$slot\"\n" in said
    with pytest.raises(UsageError, match="apostrophe"):
        slot_config("x='y'")


def test_an_archive_begins_with_its_first_file_and_ends_at_a_page() -> None:
    data = archive({"release": b"name=lab\n", "vmlinuz": b"k" * 5000})
    assert data[512:521] == b"name=lab\n"
    assert len(data) % 4096 == 0
    assert data == archive({"release": b"name=lab\n", "vmlinuz": b"k" * 5000})
