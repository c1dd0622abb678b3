"""Disk images from elsewhere: what they are, and that none leads to a file of this machine."""

import json
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pxed.client.diskfile import check_idle, format_of, to_raw
from pxed.errors import HostError, PxedError, UsageError
from tests.conftest import no_loop_device, requires

SECRET = b"what only this machine knows " * 300


def qemu_img(*words: object) -> None:
    requires("qemu-img")
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20) + b"data" * 1024 + bytes(1 << 20))
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(1 << 20, b"\0"))
    return path


def unpack(path: Path, kind: str) -> bytes:
    target = path.with_name("out")
    to_raw(path, kind, target, lambda _: None)
    return target.read_bytes()


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_a_format_is_known_and_unpacked(raw: Path, kind: str) -> None:
    path = raw.with_name("disk")
    qemu_img("convert", "-O", kind, raw, path)
    assert format_of(path) == kind
    assert unpack(path, kind)[: raw.stat().st_size] == raw.read_bytes()


def test_holes_stay_holes_and_progress_is_told(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "64M")
    seen: list[str] = []
    to_raw(path, "qcow2", tmp_path / "out", seen.append)
    assert (tmp_path / "out").stat().st_size == 64 << 20
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20
    assert seen[-1] == "100 %"


def test_a_raw_disk_is_raw(raw: Path) -> None:
    assert format_of(raw) == "raw"


def test_a_backing_file_is_never_read(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "layer"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", secret, path)
    with pytest.raises(UsageError, match="layer over another file"):
        format_of(path)


def test_an_external_data_file_is_never_read(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", path, "1M")
    with pytest.raises(UsageError, match="another file"):
        format_of(path)
    # The same with the name, and without the bit that says so.
    head = bytearray(path.read_bytes())
    struct.pack_into(">Q", head, 72, 0)
    path.write_bytes(head)
    with pytest.raises(UsageError, match="another file"):
        format_of(path)


def test_a_name_that_only_its_header_extension_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "1M")
    head = bytearray(path.read_bytes())
    (at,) = struct.unpack_from(">I", head, 100)
    struct.pack_into(">II8s", head, at, 0xE2792ACA, 3, b"raw")
    path.write_bytes(head)
    with pytest.raises(UsageError, match="names another file"):
        format_of(path)


def test_even_unasked_qemu_img_would_not_follow_a_backing_file(
    tmp_path: Path, secret: Path
) -> None:
    """The second lock on the same door: somebody replaced the file after it was looked at."""
    path = tmp_path / "layer"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", secret, path)
    with pytest.raises(UsageError):
        unpack(path, "qcow2")
    assert SECRET[:100] not in (tmp_path / "out").read_bytes()


def test_encrypted_qcow2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    # By hand: qemu-img measures how long a hash takes, and fails where time is odd.
    qemu_img("create", "-f", "qcow2", path, "1M")
    head = bytearray(path.read_bytes())
    struct.pack_into(">I", head, 32, 2)  # LUKS
    path.write_bytes(head)
    with pytest.raises(UsageError, match="is encrypted"):
        format_of(path)


def test_a_vmdk_that_is_only_a_list_of_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "1M")
    with pytest.raises(UsageError, match="can name other files"):
        format_of(path)


def test_a_vmdk_over_a_parent_is_refused(tmp_path: Path, secret: Path) -> None:
    base, path = tmp_path / "base.vmdk", tmp_path / "layer.vmdk"
    qemu_img("create", "-f", "vmdk", base, "1M")
    qemu_img("create", "-f", "vmdk", "-F", "vmdk", "-b", base, path)
    with pytest.raises(UsageError, match="layer over another file"):
        format_of(path)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\x1f\x8b\x08", "packed with gzip"),
        (b"\xfd7zXZ\0", "packed with xz"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd"),
        (b"PK\x03\x04", "packed with zip"),
        (b"QED\0", "can name other files"),
        (b"COWD", "can name other files"),
        (b"# Disk DescriptorFile\n", "can name other files"),
        (b"QFI\xfb\0\0\0\1" + bytes(200), "version 1"),
        (b"QFI\xfb\0\0\0\3" + bytes(30), "no sound"),
        (b"KDMV" + bytes(300), "can name other files"),
    ],
)
def test_what_cannot_be_taken_says_what_to_do(tmp_path: Path, head: bytes, says: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(head)
    with pytest.raises(UsageError, match=says):
        format_of(path)


def test_a_tar_archive_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "ova", "x"], check=True)
    with pytest.raises(UsageError, match="tar archive"):
        format_of(tmp_path / "ova")


def test_an_endless_list_of_extensions_ends(tmp_path: Path) -> None:
    head = bytearray(70 << 10)
    struct.pack_into(">4sI", head, 0, b"QFI\xfb", 3)
    struct.pack_into(">I", head, 100, 104)
    for at in range(104, len(head) - 16, 16):
        struct.pack_into(">II", head, at, 0x6803F857, 8)
    (tmp_path / "disk").write_bytes(head)
    with pytest.raises(UsageError, match="no sound qcow2"):
        format_of(tmp_path / "disk")


def test_too_small_a_disk_is_said_before_anything_is_written(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw.with_name("disk")
    qemu_img("convert", "-O", "qcow2", raw, path)
    full = SimpleNamespace(free=100)
    monkeypatch.setattr("pxed.client.diskfile.shutil.disk_usage", lambda _: full)
    with pytest.raises(HostError, match="only 0 MiB are free"):
        unpack(path, "qcow2")
    assert not path.with_name("out").exists()


@pytest.mark.parametrize("clusters", [1, 3, 5])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, raw: Path, clusters: int) -> None:
    path = raw.with_name("disk")
    qemu_img("convert", "-O", "qcow2", raw, path)
    path.write_bytes(path.read_bytes()[: clusters << 16])
    with pytest.raises(PxedError, match="damaged or cut off"):
        unpack(path, format_of(path))


def test_the_disk_of_a_machine_that_runs_is_refused(raw: Path) -> None:
    requires("qemu-io")
    check_idle(raw)
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(raw)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"read 0 512\n")
        writer.stdin.flush()
        while b"read 512/512" not in writer.stdout.readline():
            pass
        with pytest.raises(UsageError, match="machine that runs"):
            check_idle(raw)
        writer.stdin.close()
    check_idle(raw)


def test_a_file_that_is_a_loop_device_is_refused(raw: Path) -> None:
    requires("losetup")
    made = subprocess.run(
        ["losetup", "--find", "--show", str(raw)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    try:
        with pytest.raises(UsageError, match="losetup --detach"):
            check_idle(raw)
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
    no_loop_device(raw)
    check_idle(raw)


def test_the_json_that_qemu_img_gets_quotes_any_name(raw: Path) -> None:
    path = raw.with_name('a "quoted", name: json')
    qemu_img("convert", "-O", "qcow2", raw, path)
    assert unpack(path, "qcow2") == raw.read_bytes()
    assert json.dumps(str(path))
