"""An image for Raspberry Pis: its boot directory, command line, disk, root and manifest.

The root is a stand-in: a kernel's head, and modules of the kernel that the other tests boot.
"""

import gzip
import json
import lzma
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pxed import images, pi
from pxed.cli import main
from pxed.client.initramfs import script
from pxed.client.kernel import Kernel, fetch_kernel
from pxed.client.pitree import build_tree, command_line, configuration
from pxed.client.raspios import build_raspios
from pxed.errors import UsageError
from tests import piroot
from tests.conftest import from_mirror, requires

RELEASE = "6.6.31+rpt-rpi-v8"


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    requires("apt-get", "dpkg-deb", "depmod", "xz")
    with from_mirror():
        return fetch_kernel()


@pytest.fixture(scope="module")
def root(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root like Raspberry Pi OS's; nobody changes it."""
    top = tmp_path_factory.mktemp("raspios") / "root"
    piroot.put_boot(top / "boot/firmware", piroot.kernel_image(RELEASE))
    piroot.put_modules(top, kernel, RELEASE)
    piroot.put_system(top, {"bin/busybox": piroot.program()})
    (top / "boot/config-6").write_text("nobody's")
    (top / "etc/machine-id").write_text("4e63909100000000000000000000000a\n")
    own = top / "home/pi/mine"
    own.parent.mkdir()
    own.write_text("mine")
    subprocess.run(["chown", "-R", "1000:1000", str(own.parent)], check=True)
    return top


def listing(top: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(top)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in top.rglob("*")
    }


@pytest.fixture(scope="module")
def image(root: Path) -> Path:
    requires("mksquashfs", "unsquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf")
    before = listing(root)
    target = root.parent / "images/pi/1"
    said: list[str] = []
    lacks = build_raspios(target, root, name="pi", version="1", progress=said.append)
    assert lacks == []
    assert any(RELEASE in line for line in said)
    assert listing(root) == before
    assert [path.name for path in target.parent.iterdir()] == ["1"]
    return target


def test_the_manifest(image: Path) -> None:
    found = images.load(image)
    assert (found.class_name, found.tree) == ("rpi", image / "firmware")
    assert {name: path.name for name, path in found.devices.items()} == {
        "boot": "boot.img", "root": "root.squashfs",
    }  # fmt: skip
    assert found.kernel is not None
    assert found.kernel.initrd == image / "firmware/initramfs"
    assert found.kernel.vmlinuz == image / "firmware/kernel8.img"
    assert found.kernel.cmdline + "\n" == (image / "firmware/cmdline.txt").read_text()
    for path in found.devices.values():
        assert path.stat().st_size % 4096 == 0


def test_the_tree_has_what_the_firmware_reads_and_nothing_of_one_card(image: Path) -> None:
    tree = image / "firmware"
    names = sorted(str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file())
    assert names == [
        "bcm2710-rpi-3-b-plus.dtb", "bcm2711-rpi-4-b.dtb", "bootcode.bin", "cmdline.txt",
        "config.txt", "fixup.dat", "fixup4.dat", "initramfs", "kernel8.img",
        "overlays/overlay_map.dtb", "overlays/vc4-kms-v3d.dtbo", "start.elf", "start4.elf",
    ]  # fmt: skip
    for name in names:
        mode = stat.S_IMODE((tree / name).stat().st_mode)
        assert mode == 0o644, name
    assert (tree / "start4.elf").read_bytes() == b"start4.elf " * 300


def test_the_command_line_leads_to_the_root_over_aoe(image: Path) -> None:
    assert (image / "firmware/cmdline.txt").read_text() == (
        "aoe.aoe_deadsecs=0 pxed.shelf=17 console=serial0,115200 console=tty1 quiet "
        "cfg80211.ieee80211_regdom=DE\n"
    )


@pytest.mark.parametrize("model", pi.MODELS)
def test_config_txt_starts_our_initramfs_on_every_model(image: Path, model: str) -> None:
    text = (image / "firmware/config.txt").read_text()
    said = pi.settings(text, model)
    assert said["initramfs"] == "initramfs followkernel"
    assert (said["kernel"], said["arm_64bit"], said["auto_initramfs"]) == ("kernel8.img", "1", "0")
    assert said["dtoverlay"] == "vc4-kms-v3d"  # what was there before
    assert ("arm_boost" in said) == (model == "4B")


def test_the_initramfs_has_plain_modules_and_is_not_for_this_machine(
    image: Path, kernel: Kernel
) -> None:
    raw = subprocess.run(
        ["gzip", "-dc", str(image / "firmware/initramfs")], check=True, capture_output=True
    ).stdout  # this kernel says of no other way that it knows it
    shown = subprocess.run(["cpio", "-it", "--quiet"], input=raw, check=True, capture_output=True)
    listed = shown.stdout.decode().split()
    files = {Path(name).name for name in listed}
    assert {"init", "keep.sh", "functions.sh", "layers.sh"} <= files
    assert {"busybox", "mount", "switch_root"} <= files
    assert {"aoe.ko", "overlay.ko", "squashfs.ko", "virtio_net.ko"} <= files
    assert not [name for name in listed if name.endswith(".xz")]
    assert f"lib/modules/{RELEASE}/modules.dep" in listed
    at = raw.index(b"bin/busybox\0")
    assert piroot.program() in raw[at : at + 256]
    plain = (kernel.modules / kernel.closure(["aoe"])[-1]).read_bytes()
    assert plain in raw


def test_the_boot_disk_holds_the_tree(image: Path) -> None:
    disk = image / "boot.img"
    table = json.loads(
        subprocess.run(["sfdisk", "-J", str(disk)], check=True, capture_output=True).stdout
    )["partitiontable"]
    (part,) = table["partitions"]
    assert (table["label"], part["type"]) == ("dos", "c")
    at = f"{disk}@@{part['start'] * 512}"
    for name in ("config.txt", "start4.elf", "overlays/vc4-kms-v3d.dtbo", "initramfs"):
        got = subprocess.run(["mtype", "-i", at, f"::/{name}"], check=True, capture_output=True)
        assert got.stdout == (image / "firmware" / name).read_bytes(), name
    with disk.open("rb") as raw:
        raw.seek(part["start"] * 512 + 82)
        assert raw.read(5) == b"FAT32"


def test_the_root_is_a_seats_and_keeps_its_owners(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "root"
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", str(out), str(image / "root.squashfs")],
        check=True, capture_output=True,
    )  # fmt: skip
    assert (out / "etc/pxed-image").read_text() == "pi@1\n"
    assert (out / "etc/machine-id").read_bytes() == b""
    assert not (out / "etc/hostname").exists()
    assert "PARTUUID" not in (out / "etc/fstab").read_text()
    assert list((out / "boot").iterdir()) == [out / "boot/firmware"]
    assert not list((out / "boot/firmware").iterdir())
    assert (out / "usr/sbin/pxed-report").stat().st_mode & 0o111
    units = out / "etc/systemd/system"
    assert (units / "multi-user.target.wants/pxed-running.service").is_symlink()
    assert (units / "dphys-swapfile.service").readlink() == Path("/dev/null")
    assert (units / "multi-user.target.wants/pxed-dns.path").is_symlink()  # no systemd-resolved
    assert (out / "usr/sbin/pxed-dns").stat().st_mode & 0o111
    mine = out / "home/pi/mine"
    assert (mine.stat().st_uid, mine.read_text()) == (1000, "mine")
    assert not list((out / "tmp").iterdir())
    assert not (out / "var/log/boot.log").exists()


def test_the_same_input_gives_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1763000000")
    archive = tmp_path / "root.tar.gz"
    subprocess.run(["tar", "-C", str(root), "-czf", str(archive), "."], check=True)
    for name, source in (("a", root), ("b", archive)):
        build_raspios(tmp_path / name, source, name="pi", version="1")
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file() and path.name != "build.log":
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert other.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("efi", "pack", "vmlinuz"),
    [(True, gzip.compress, "vmlinuz"), (True, bytes, "firmware/kernel8.img"), (False, bytes, "")],
)
def test_the_kernel_that_ipxe_gets_is_an_efi_program(
    root: Path, tmp_path: Path, efi: bool, pack: Callable[[bytes], bytes], vmlinuz: str
) -> None:
    requires("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf")
    plain = piroot.kernel_image(RELEASE, efi=efi)
    kept = pack(plain)
    piroot.put_boot(tmp_path / "boot", kept)
    build_raspios(tmp_path / "1", root, name="pi", version="1", boot=tmp_path / "boot")
    found = images.load(tmp_path / "1")
    assert (found.kernel is not None) == efi
    if found.kernel is not None:
        assert found.kernel.vmlinuz == tmp_path / "1" / vmlinuz
        assert found.kernel.vmlinuz.read_bytes() == plain
    assert (tmp_path / "1/firmware/kernel8.img").read_bytes() == kept


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["image", "build", "raspios-like", *words])


def test_the_command_and_what_it_says_of_a_tree_that_lacks_something(
    root: Path, tmp_path: Path
) -> None:
    requires("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf")
    boot, state = tmp_path / "boot", tmp_path / "state"
    piroot.put_boot(boot, piroot.kernel_image(RELEASE))
    (boot / "bootcode.bin").unlink()
    got = run(str(root), "--boot", str(boot), "--shelf", "21", "--state-dir", str(state),
              "--version", "7", "--cmdline", "pxed.mount=boot")  # fmt: skip
    assert got.exit_code == 0, got.output
    assert "image pi@7 is ready in" in got.output
    assert "it lacks something: 3B+: bootcode.bin is missing: copy it from" in got.output
    words = (state / "images/pi/7/firmware/cmdline.txt").read_text().split()
    assert {"pxed.shelf=21", "pxed.mount=boot"} <= set(words)
    shown = CliRunner().invoke(main, ["image", "show", "pi", "--state-dir", str(state)])
    assert "lacks: 3B+: bootcode.bin is missing" in shown.output
    assert "firmware/start4.elf" in shown.output
    asked = CliRunner().invoke(main, ["image", "verify", "pi", "--state-dir", str(state)])
    assert asked.exit_code == 0, asked.output


@pytest.mark.parametrize(
    ("compression", "text"),
    [("zstd", "no CONFIG_SQUASHFS_ZSTD"), ("lz4", "no CONFIG_SQUASHFS_LZ4")],
)
def test_a_compression_that_its_kernel_cannot_read_is_refused(
    root: Path, tmp_path: Path, compression: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("mksquashfs", "mcopy", "mkfs.fat", "sfdisk", "readelf")
    known = frozenset(("SQUASHFS_XZ", "SQUASHFS_ZLIB", "RD_ZSTD"))
    monkeypatch.setattr("pxed.client.armroot.ArmRoot.kernel_options", lambda *_: known)
    with pytest.raises(UsageError, match=text):
        build_raspios(tmp_path / "1", root, name="pi", version="1", compression=compression)
    assert not list(tmp_path.iterdir())


def test_a_root_without_a_boot_directory_is_refused(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "boot"
    other.mkdir()
    got = run(str(root), "--boot", str(other), "--state-dir", str(tmp_path / "state"))
    assert got.exit_code == 2
    assert re.fullmatch(r"pxed: .*has no start\*\.elf.*\n", got.output.splitlines(True)[-1])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("console=tty1 root=/dev/nfs nfsroot=10.0.0.1:/pi ip=dhcp rw\n", "console=tty1"),
        ("ro quiet rootwait resize init=/x systemd.run=/boot/firstrun.sh\n", "quiet"),
        ("aoe.aoe_deadsecs=180 pxed.shelf=99 splash\nsecond line\n", "splash"),
        ("\n", "console=tty1"),
    ],
)
def test_what_is_left_of_a_command_line(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "cmdline.txt").write_text(text)
    got = command_line(tmp_path, 17)
    assert got == f"aoe.aoe_deadsecs=0 pxed.shelf=17 {wanted}"


def test_lines_of_config_txt_that_mean_another_start_are_kept_as_comments() -> None:
    got = configuration(
        "kernel=vmlinuz\n[pi4]\ninitramfs initrd.img followkernel\ngpu_mem=64\n", "k"
    )
    assert "# for a start from a disk: kernel=vmlinuz\n" in got
    assert "# for a start from a disk: initramfs initrd.img followkernel\n" in got
    assert got.endswith("initramfs initramfs followkernel\n")
    assert pi.settings(got, "4B")["gpu_mem"] == "64"


def test_a_link_in_the_boot_directory_leads_nowhere_else(tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    piroot.put_boot(boot, b"kernel")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (boot / "escape.bin").symlink_to("../secret.bin")
    (boot / "absolute.bin").symlink_to(tmp_path / "secret.bin")
    (boot / "good.bin").symlink_to("start.elf")
    (boot / "config.txt").write_text("include ../secret.bin\ninclude more.txt\n")
    (boot / "more.txt").write_text("gpu_mem=64\n")
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(b"")
    build_tree(tmp_path / "tree", boot, initramfs=initramfs, cmdline="quiet")
    names = {p.name for p in (tmp_path / "tree").iterdir()}
    assert {"good.bin", "more.txt"} <= names
    assert not {"escape.bin", "absolute.bin", "secret.bin"} & names


def test_modules_of_every_packing(tmp_path: Path) -> None:
    from pxed.client.kernel import unpacked

    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"module"))
    (tmp_path / "a.ko").write_bytes(b"module")
    for name in ("a.ko.xz", "a.ko"):
        assert unpacked(tmp_path / name) == b"module"


NETWORKD = "OPER_STATE=routable\nDNS=10.0.0.1 [2001:db8::1]:53#dns.example 10.0.0.2:5353\n"


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (NETWORKD, "nameserver 10.0.0.1\nnameserver 2001:db8::1\nnameserver 10.0.0.2\n"),
        ("DNS=2001:db8::1\nDOMAINS=lab.example\n", "nameserver 2001:db8::1\nsearch lab.example\n"),
        ("DNS=\n", "as it was\n"),
        ("OPER_STATE=off\n", "as it was\n"),
    ],
)
def test_name_servers_for_a_system_without_resolved(
    tmp_path: Path, state: str, wanted: str
) -> None:
    text = script("dns.sh").decode()
    for place in ("/run/systemd/netif/state", "/run/pxed/resolv.conf", "/etc/resolv.conf"):
        text = text.replace(place, str(tmp_path / Path(place).name) + "-" + place.split("/")[1])
    (tmp_path / "state-run").write_text(state)
    (tmp_path / "old").write_text("as it was\n")
    (tmp_path / "resolv.conf-etc").symlink_to("old")
    subprocess.run(["sh", "-c", text], check=True)
    assert (tmp_path / "resolv.conf-etc").read_text() == wanted
    assert (tmp_path / "old").read_text() == "as it was\n"
