"""The minimal image: a manifest, devices of the right size, an initramfs that can do its work."""

import json
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

from pxed.client.initramfs import busybox, script
from pxed.client.kernel import Kernel, fetch_kernel
from pxed.client.minimal import build_minimal
from pxed.errors import UsageError
from tests.conftest import from_mirror, requires

SCRIPTS = ("init.sh", "report.sh", "rc.sh", "udhcpc.sh")


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    requires("apt-get", "dpkg-deb", "depmod", "busybox", root=False)
    with from_mirror():
        return fetch_kernel()


@pytest.fixture(scope="module")
def image(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    requires("zstd", "mksquashfs", "unsquashfs", "mcopy", "syslinux", root=False)
    folder = tmp_path_factory.mktemp("images") / "lab/2026.11"
    said: list[str] = []
    manifest = build_minimal(
        folder,
        version="2026.11",
        cmdline="pxed.reboot=5",
        files={"/etc/motd": b"hello\n"},
        progress=said.append,
    )
    assert (manifest.name, manifest.version, manifest.machine_class) == ("lab", "2026.11", "x86")
    assert said
    assert [path.name for path in folder.parent.iterdir()] == ["2026.11"]
    return folder


def test_the_manifest_names_files_that_are_there(image: Path) -> None:
    manifest = json.loads((image / "manifest.json").read_text())
    kernel = manifest.pop("kernel")
    assert kernel["cmdline"].endswith(" pxed.reboot=5")
    assert (image / kernel["vmlinuz"]).is_file()
    assert (image / kernel["initrd"]).is_file()
    assert date.fromisoformat(manifest.pop("released"))
    assert manifest == {
        "name": "lab",
        "version": "2026.11",
        "class": "x86",
        "devices": {"boot": "boot.img", "root": "root.squashfs"},
    }
    for name in manifest["devices"].values():
        size = (image / name).stat().st_size
        assert size > 0
        assert size % 4096 == 0


def test_the_initramfs_has_the_modules_and_all_they_need(image: Path, kernel: Kernel) -> None:
    raw = subprocess.run(["zstd", "-dcq", str(image / "initrd")], check=True, capture_output=True)
    shown = subprocess.run(
        ["cpio", "-it", "--quiet"], input=raw.stdout, check=True, capture_output=True
    )
    listed = shown.stdout.decode().split()
    present = {Path(name).name for name in listed}
    for module in ("aoe.ko", "squashfs.ko", "overlay.ko", "virtio_net.ko", "virtio_pci.ko"):
        assert module in present
    for path in kernel.closure(["virtio_net", "aoe", "overlay", "squashfs"]):
        assert f"lib/modules/{kernel.release}/{path}" in listed
    assert {"init", "bin/busybox", "bin/sh", "dev", "proc", "sys", "run"} <= set(listed)
    assert f"lib/modules/{kernel.release}/modules.dep" in listed


def test_the_initramfs_is_small(image: Path) -> None:
    assert (image / "initrd").stat().st_size < 1_700_000


def test_the_command_line_keeps_a_client_alive_and_takes_additions(image: Path) -> None:
    shown = subprocess.run(
        ["mtype", "-i", f"{image / 'boot.img'}@@{1 << 20}", "::/syslinux.cfg"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    words = re.search(r"APPEND (.*)", shown)
    assert words is not None
    assert {"aoe.aoe_deadsecs=0", "pxed.shelf=16", "pxed.reboot=5"} <= set(words[1].split())


def test_the_root_has_init_the_name_and_what_was_added(image: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", str(tmp_path / "root"), str(image / "root.squashfs")],
        check=True, capture_output=True,
    )  # fmt: skip
    root = tmp_path / "root"
    assert (root / "sbin/init").readlink() == Path("../bin/busybox")
    assert (root / "etc/pxed-image").read_text() == "lab@2026.11\n"
    assert (root / "etc/motd").read_bytes() == b"hello\n"
    assert (root / "bin/sh").is_symlink()
    for folder in ("config", "dev", "proc", "sys", "run"):
        assert (root / folder).is_dir()
    for program in ("etc/rc", "bin/pxed-report", "bin/busybox"):
        assert (root / program).stat().st_mode & 0o111


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_understood_by_the_shell_that_runs_them(name: str, tmp_path: Path) -> None:
    requires("busybox", root=False)
    path = tmp_path / name
    path.write_bytes(script(name))
    checked = subprocess.run([str(busybox()), "sh", "-n", str(path)], capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_an_image_is_never_written_over(image: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        build_minimal(image, version="2026.11")


@pytest.mark.parametrize("version", ["../up", "", "a b", "-x", "a/b", "x\n"])
def test_a_name_that_is_no_directory_name_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a name or version is"):
        build_minimal(tmp_path / "image", name=version)


def test_a_command_line_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one line"):
        build_minimal(tmp_path / "image", cmdline="quiet\nLABEL other")
