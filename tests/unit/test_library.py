"""The library of images: added whole or not at all, switched, rolled back, never pulled away."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pxed import images
from pxed.contents import Source
from pxed.errors import HostError, UsageError
from pxed.images import Image
from pxed.library import Library
from tests.conftest import requires


def free(_image: Image) -> str:
    return ""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "images")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory as a vendor would send it: two devices, one sparse, and a tree beside them."""
    directory = tmp_path / "source"
    (directory / "boot").mkdir(parents=True)
    (directory / "boot.img").write_bytes(b"boot" * 4096)
    with (directory / "root.img").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"root" * 1024)
    (directory / "boot" / "config.txt").write_text("arm_64bit=1\n")
    manifest(directory)
    return directory


def manifest(directory: Path, **changes: Any) -> None:
    said = {"name": "lab", "version": "1", "class": "x86",
            "devices": {"boot": "boot.img", "root": "root.img"}}  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(said | changes))


def add(library: Library, source: Path, version: str = "1", **more: Any) -> Image:
    return library.add(Source(source, version=version, **more))


def test_an_added_image_is_whole_and_has_digests(library: Library, source: Path) -> None:
    image = add(library, source, released="2026-11-23")
    assert str(image) == "lab@1"
    assert image.released == "2026-11-23"
    assert set(image.files) == {"boot.img", "root.img", "boot/config.txt"}
    assert all(finding.good for finding in library.verify(image))


def test_how_else_it_boots_comes_along(library: Library, source: Path) -> None:
    kernel = {"vmlinuz": "boot/config.txt", "initrd": "boot.img", "cmdline": "quiet"}
    manifest(source, kernel=kernel, maintenance={**kernel, "cmdline": "panic=30"}, tree="boot")
    image = add(library, source)
    assert image.kernel is not None
    assert image.kernel.initrd == image.directory / "boot.img"
    assert image.maintenance is not None
    assert image.maintenance.cmdline == "panic=30"
    assert image.tree == image.directory / "boot"


def test_a_root_whose_journal_was_not_replayed_is_refused(
    library: Library, source: Path, tmp_path: Path
) -> None:
    """As a part of a directory and by itself; what was written last would be missing."""
    requires("mkfs.ext4", "debugfs", root=False)
    root = source / "root.img"
    subprocess.run(["mkfs.ext4", "-q", "-F", str(root)], check=True)
    add(library, source)
    change = ["debugfs", "-w", "-R", "feature needs_recovery", str(root)]
    subprocess.run(change, check=True, capture_output=True)
    said = r"root\.img: was not unmounted in order: .* shut it down, or mend a copy with e2fsck"
    with pytest.raises(UsageError, match=said):
        add(library, source, "2")
    alone = root.rename(tmp_path / "root.img")
    devices = {"boot": source / "boot.img", "root": alone}
    with pytest.raises(UsageError, match=said):
        library.add(Source(devices=devices, name="lab", version="2"))
    assert images.versions(library.directory, "lab") == ["1"]


def test_an_added_image_keeps_its_kernel_and_says_where_it_is_from(
    library: Library, source: Path
) -> None:
    for name in ("vmlinuz", "initrd"):
        (source / name).write_text(name)
    kernel = {"vmlinuz": "vmlinuz", "initrd": "initrd", "cmdline": "quiet"}
    manifest(source, kernel=kernel, origin={"format": "qcow2"}, diskless_only="a live image")
    image = add(library, source)
    assert image.kernel is not None
    assert image.kernel.initrd.read_text() == "initrd"
    said = json.loads((image.directory / "manifest.json").read_text())
    assert said["origin"] == {"format": "qcow2"}
    assert said["diskless_only"] == "a live image"


def test_an_image_that_is_made_in_the_library_is_whole_or_not_there(
    library: Library, source: Path
) -> None:
    def broken() -> None:
        with library.making("lab", "1") as new:
            (new / "boot.img").write_bytes(b"b" * 512)
            raise HostError("no")

    with pytest.raises(HostError, match="no"):
        broken()
    assert not (library.directory / "lab").exists()
    with library.making("lab", "1") as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
    image = library.find("lab@stable")
    assert all(finding.good for finding in library.verify(image))
    with pytest.raises(UsageError, match="never changes"), library.making("lab", "1"):
        raise AssertionError("not asked")


def test_a_sparse_device_stays_sparse(library: Library, source: Path) -> None:
    assert add(library, source).devices["root"].stat().st_blocks * 512 < 1 << 20


def test_progress_reaches_its_end(library: Library, source: Path) -> None:
    seen: list[tuple[int, int]] = []
    library.add(Source(source), lambda _what, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_a_changed_byte_is_found(library: Library, source: Path) -> None:
    image = add(library, source)
    image.devices["boot"].chmod(0o644)
    with image.devices["boot"].open("r+b") as file:
        file.write(b"B")
    assert [f.file for f in library.verify(image) if f.good is False] == ["boot.img"]


def test_a_file_that_is_gone_is_found(library: Library, source: Path) -> None:
    image = add(library, source)
    (image.directory / "boot" / "config.txt").unlink()
    assert [f.file for f in library.verify(image) if not f.good] == ["boot/config.txt"]


def test_a_source_that_does_not_fit_its_own_digests_is_refused(
    library: Library, source: Path
) -> None:
    manifest(source, files={"boot.img": {"size": 16384, "sha256": "0" * 64}})
    with pytest.raises(UsageError, match="sha256"):
        add(library, source)
    assert library.all() == ([], [])
    assert not (library.directory / "lab").exists()


def test_an_image_never_changes(library: Library, source: Path) -> None:
    add(library, source)
    with pytest.raises(UsageError, match="never changes"):
        add(library, source)


@pytest.mark.parametrize("name", ["../x", "", "a b", "x" * 65, "stable", "canary"])
def test_a_bad_version_is_refused(library: Library, source: Path, name: str) -> None:
    manifest(source, version=name or "?")
    with pytest.raises(UsageError):
        add(library, source, name)


def test_single_devices_make_an_image(library: Library, source: Path) -> None:
    devices = {"boot": source / "boot.img", "root": source / "root.img"}
    image = library.add(Source(None, devices, "pc", "7"))
    assert image.devices["root"].read_bytes()[32 << 20 :][:4] == b"root"
    with pytest.raises(UsageError, match="--root"):
        library.add(Source(None, {"boot": source / "boot.img"}, "pc", "8"))


def test_the_first_version_is_stable_and_later_ones_wait(library: Library, source: Path) -> None:
    add(library, source, "1")
    add(library, source, "2")
    assert str(library.find("lab")) == "lab@1"
    assert str(library.find("lab@stable")) == "lab@1"


def test_use_and_rollback(library: Library, source: Path) -> None:
    for version in ("1", "2", "3"):
        add(library, source, version)
    assert library.use("lab@3")[1] == "1"
    assert str(library.find("lab")) == "lab@3"
    assert library.use("lab@3")[1] == "3"  # twice is once
    image, left = library.rollback("lab")
    assert (str(image), left) == ("lab@1", "3")
    with pytest.raises(UsageError, match="no version before"):
        library.rollback("lab")


def test_a_canary_channel_is_its_own_pointer(library: Library, source: Path) -> None:
    add(library, source, "1")
    add(library, source, "2")
    library.use("lab@2", "canary")
    assert (str(library.find("lab@canary")), str(library.find("lab"))) == ("lab@2", "lab@1")
    with pytest.raises(UsageError, match="canary"):
        library.remove(library.find("lab@2"), free)
    library.drop_channel("lab", "canary")
    library.remove(library.find("lab@2"), free)
    assert images.versions(library.directory, "lab") == ["1"]


def test_what_is_in_use_stays(library: Library, source: Path) -> None:
    add(library, source, "1")
    add(library, source, "2")
    with pytest.raises(UsageError, match="seat-01 runs it"):
        library.remove(library.find("lab@2"), lambda _: "seat-01 runs it")
    with pytest.raises(UsageError, match="stable"):
        library.remove(library.find("lab@1"), free)


def test_rollback_skips_what_was_removed(library: Library, source: Path) -> None:
    for version in ("1", "2", "3"):
        add(library, source, version)
        library.use(f"lab@{version}")
    library.remove(library.find("lab@2"), free)
    assert str(library.rollback("lab")[0]) == "lab@1"


@pytest.mark.parametrize("text", ["{", "[]", '{"stable": 1}', '{"../x": []}'])
def test_damaged_channels_are_a_clear_error(library: Library, source: Path, text: str) -> None:
    add(library, source)
    (library.directory / "lab" / "channels.json").write_text(text)
    with pytest.raises(UsageError, match=r"channels\.json"):
        library.find("lab")


SLOW = """
import sys, time
from pathlib import Path
from pxed import library
from pxed.disk import copy_data
def slow(*args):
    print("copying", flush=True)
    time.sleep(60)
library.disk.copy_data = slow
library.Library(Path(sys.argv[1])).add(library.Source(Path(sys.argv[2]), version="9"))
"""


def test_a_killed_add_leaves_nothing_to_see_and_the_next_one_cleans(
    library: Library, source: Path
) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(library.directory), str(source)], stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"copying\n"
    assert library.clean() == []  # it is still at work
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert library.all() == ([], [])
    assert len(library.clean()) == 1
    assert str(add(library, source)) == "lab@1"


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from pxed import library
where, name = sys.argv[3].rsplit(".", 1)
owner = library
for part in where.split(".") if where else []:
    owner = getattr(owner, part)
first = getattr(owner, name)
def die(*args, **kwargs):
    if sys.argv[4] == "after":
        first(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, die)
library.Library(Path(sys.argv[1])).add(library.Source(Path(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("point", "when", "there"),
    [
        ("disk.copy_data", "before", False),
        ("disk.copy_data", "after", False),
        ("os.fsync", "before", False),
        ("disk.write_whole", "after", False),
        ("images.load", "after", False),
        ("Library._refuse_what_is_there", "after", False),
        ("Path.rename", "before", False),
        ("disk.sync_directory", "before", False),
        ("disk.sync_directory", "after", False),
        ("Library.use", "before", True),
    ],
)
def test_killed_anywhere_an_add_is_whole_or_nothing(
    library: Library, source: Path, point: str, when: str, there: bool
) -> None:
    places = (str(library.directory), str(source), f".{point}" if "." not in point else point)
    done = subprocess.run([sys.executable, "-c", KILLED_AT, *places, when], check=False)
    assert done.returncode == -signal.SIGKILL
    good, bad = library.all()
    assert ([str(each) for each in good], bad) == (["lab@1"] if there else [], [])
    for image in good:
        assert all(finding.good for finding in library.verify(image))
    library.clean()
    assert not list(library.directory.glob("*/.*-*"))
    assert str(library.find("lab") if there else add(library, source)) == "lab@1"


def test_old_leftovers_of_a_build_are_cleaned(library: Library) -> None:
    old, young = library.directory / "lab" / ".new-old", library.directory / "lab" / ".new-young"
    old.mkdir(parents=True)
    young.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    assert library.clean() == [old]


def test_a_full_disk_is_a_clear_error(
    library: Library, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pxed.disk.copy_data", full)
    with pytest.raises(HostError, match="No space left"):
        add(library, source)
    assert not (library.directory / "lab").exists()


def test_links_that_lead_out_are_refused(library: Library, source: Path) -> None:
    (source / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="plain files"):
        add(library, source)


def test_an_image_without_digests_can_be_sealed(library: Library, source: Path) -> None:
    (library.directory / "lab").mkdir(parents=True)
    source.rename(library.directory / "lab" / "1")
    image = library.find("lab")
    assert {finding.good for finding in library.verify(image)} == {None}
    sealed = library.seal(image)
    assert {finding.good for finding in library.verify(sealed)} == {True}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A loop device with a file system, and a directory to mount it on."""
    requires("losetup", "mkfs.ext4", "mount")
    backing, mountpoint = tmp_path / "disk", tmp_path / "mnt"
    mountpoint.mkdir()
    with backing.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", backing], check=True)
    done = subprocess.run(
        ["losetup", "--show", "-f", backing], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    yield device, mountpoint
    subprocess.run(["umount", mountpoint], capture_output=True, check=False)
    subprocess.run(["losetup", "-d", device], check=True)


def test_a_block_device_is_served_in_place_or_copied(
    library: Library, source: Path, disk: tuple[Path, Path]
) -> None:
    devices = {"boot": source / "boot.img", "root": disk[0]}
    image = library.add(Source(None, devices, "pc", "1"))
    assert image.devices["root"] == disk[0]
    assert {f.file: f.good for f in library.verify(image)} == {"boot.img": True, "root": None}
    copied = library.add(Source(None, devices, "pc", "2", copy=True))
    assert copied.devices["root"].stat().st_size == 16 << 20
    assert copied.devices["root"].stat().st_blocks * 512 < 8 << 20  # zeros are holes
    assert copied.devices["root"].read_bytes() == disk[0].read_bytes()


def test_a_block_device_that_is_mounted_read_write_is_refused(
    library: Library, source: Path, disk: tuple[Path, Path]
) -> None:
    devices = {"boot": source / "boot.img", "root": disk[0]}
    subprocess.run(["mount", disk[0], disk[1]], check=True)
    with pytest.raises(UsageError, match="mounted read-write"):
        library.add(Source(None, devices, "pc", "1"))
    subprocess.run(["umount", disk[1]], check=True)
    subprocess.run(["mount", "-o", "ro", disk[0], disk[1]], check=True)
    assert str(library.add(Source(None, devices, "pc", "1"))) == "pc@1"
