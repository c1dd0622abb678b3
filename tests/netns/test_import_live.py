"""``pxed image import`` of live systems: their kind, what their initramfs is given, the root."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pxed.client.archive import Cpio
from tests.conftest import requires
from tests.netns.machines import RELEASE, Importer, importer, machine

__all__ = ["importer", "machine"]

pytestmark = pytest.mark.netns


def bzimage() -> bytes:
    """A kernel image, as far as anybody looks: 64 bit, and it says its release."""
    data = bytearray(4096)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x236, 1)
    struct.pack_into("<H", data, 0x20E, 0x600)
    text = f"{RELEASE} (me) #1\0".encode()
    data[0x800 : 0x800 + len(text)] = text
    return bytes(data)


def live(machine: Path, place: Path, *inside: str) -> tuple[Path, bytes]:
    """The tree of a live medium, and its initramfs with these files."""
    tree = place / "tree"
    for folder in ("LiveOS", "images/pxeboot"):
        (tree / folder).mkdir(parents=True)
    squash = ["mksquashfs", str(machine), str(tree / "LiveOS/squashfs.img"), "-quiet"]
    subprocess.run([*squash, "-no-progress"], check=True, capture_output=True)
    (tree / "images/pxeboot/vmlinuz").write_bytes(bzimage())
    made = Cpio()
    for name in ("init", *inside):
        made.file(name, b"x")
    (tree / "images/pxeboot/initrd.img").write_bytes(bytes(made))
    return tree, bytes(made)


def appended(shown: dict[str, Any], own: bytes) -> bytes:
    """What was put behind the medium's own initramfs, which is as it was."""
    initrd = Path(shown["devices"]["boot"]).with_name("initrd").read_bytes()
    assert initrd.startswith(own)
    return initrd[len(own) :]


def cmdline(shown: dict[str, Any]) -> str:
    manifest = Path(shown["devices"]["boot"]).with_name("manifest.json")
    said: str = json.loads(manifest.read_text())["kernel"]["cmdline"]
    return said


KIWI = ("usr/sbin/kiwi-live-root", "usr/lib/net-lib.sh", "usr/lib/modules/6/aoe.ko")


def test_a_kiwi_iso_is_served_whole_to_its_own_initramfs(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    requires("xorriso")
    tree, own = live(machine, tmp_path, *KIWI)
    source = tmp_path / "kiwi.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", str(source), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    shown = importer(source)
    assert shown["origin"]["root"] == "LiveOS/squashfs.img, kiwi"
    assert "a live system" in shown["diskless_only"]
    assert shown["devices"].keys() == {"boot", "root"}
    assert Path(shown["devices"]["root"]).read_bytes().startswith(source.read_bytes())
    assert "root=live:AOEINTERFACE=e16.1" in cmdline(shown)
    more = appended(shown, own)
    assert b"echo > /dev/etherd/discover" in more
    assert b"busybox" not in more


def test_untouched_if_that_is_asked_for(importer: Importer, machine: Path, tmp_path: Path) -> None:
    tree, own = live(machine, tmp_path, *KIWI)
    assert appended(importer(tree, "--initramfs", "its"), own) == b""


def test_a_dracut_that_knows_no_aoe_gets_the_roots_own_driver(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    tree, own = live(machine, tmp_path, "sbin/dmsquash-live-root")
    assert "cannot do AoE by itself" in importer.refused(tree, "--initramfs", "its")
    shown = importer(tree)
    squash = (tree / "LiveOS/squashfs.img").read_bytes()
    assert Path(shown["devices"]["root"]).read_bytes().startswith(squash)
    assert "root=live:/dev/etherd/e16.1" in cmdline(shown)
    more = appended(shown, own)
    assert f"pxed/lib/modules/{RELEASE}/kernel/drivers/block/aoe/aoe.ko".encode() in more
    assert b"usr/lib/dracut/hooks/initqueue/settled/20-pxed.sh" in more


def test_a_live_system_of_an_unknown_kind_gets_our_initramfs(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    tree, _ = live(machine, tmp_path)
    assert "no kind that is known" in importer.refused(tree, "--initramfs", "its")
    shown = importer(tree)
    assert shown["diskless_only"] == ""
    assert "root=live" not in cmdline(shown)
    squash = (tree / "LiveOS/squashfs.img").read_bytes()
    assert Path(shown["devices"]["root"]).read_bytes().startswith(squash)


def test_a_live_system_without_an_aoe_driver_is_refused(
    importer: Importer, machine: Path, tmp_path: Path
) -> None:
    (machine / f"lib/modules/{RELEASE}/modules.dep").write_text("")
    tree, _ = live(machine, tmp_path, "sbin/dmsquash-live-root")
    assert "has no AoE driver" in importer.refused(tree)
    assert "has no AoE driver" in importer.refused(tree, "--initramfs", "ours")
