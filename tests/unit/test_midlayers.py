"""Midlayers: real file systems, sparse, never overwritten, complete or not there."""

import re
import subprocess
from pathlib import Path

import pytest

from pxed.errors import HostError, UsageError
from pxed.mac import Mac
from pxed.midlayers import REPORT_BYTES, Midlayers, NoRoom
from tests.conftest import requires

MAC = Mac("52:54:00:00:00:01")
SIZE = 512 << 20


@pytest.fixture
def midlayers(tmp_path: Path) -> Midlayers:
    requires("mkfs.ext4", root=False)
    made = Midlayers(tmp_path / "config" / "midlayers", SIZE)
    made.open()
    return made


def test_a_clone_is_a_clean_file_system_of_the_asked_size(midlayers: Midlayers) -> None:
    assert midlayers.prepare(MAC).new
    path = midlayers.path(MAC)
    assert path.stat().st_size == SIZE
    checked = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_clone_takes_little_room_on_the_disk(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    assert midlayers.path(MAC).stat().st_blocks * 512 < 4 << 20


def test_the_client_has_no_inode_tables_left_to_write(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    dump = subprocess.run(
        ["dumpe2fs", midlayers.path(MAC)], capture_output=True, text=True, check=True
    ).stdout
    groups = [line for line in dump.splitlines() if re.match(r"Group \d", line)]
    assert groups
    assert all("ITABLE_ZEROED" in line for line in groups)


def test_an_existing_midlayer_is_not_touched(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    with midlayers.path(MAC).open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"precious")
    assert not midlayers.prepare(MAC).new
    with midlayers.path(MAC).open("rb") as file:
        file.seek(1 << 20)
        assert file.read(8) == b"precious"


def test_nobody_else_may_read_it(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    assert midlayers.path(MAC).stat().st_mode & 0o077 == 0


def test_the_report_device_has_its_size(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    assert midlayers.report_path(MAC).stat().st_size == REPORT_BYTES


def test_what_an_interrupted_run_left_is_removed(midlayers: Midlayers) -> None:
    left = midlayers.directory / ".new-525400000002.ext4"
    left.write_bytes(b"half")
    midlayers.open()
    assert not left.exists()


def test_a_template_of_another_size_is_not_used(midlayers: Midlayers) -> None:
    other = Midlayers(midlayers.directory, 64 << 20)
    other.open()
    other.prepare(MAC)
    assert other.path(MAC).stat().st_size == 64 << 20


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="choose another state_dir"):
        Midlayers(tmp_path / "file" / "midlayers", SIZE).open()


def unclean(path: Path) -> None:
    """As a power cut leaves it: the journal has to be replayed."""
    subprocess.run(["debugfs", "-w", "-R", "feature needs_recovery", path],
                   capture_output=True, check=True)  # fmt: skip


def put(path: Path, text: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(300 << 20)
        file.write(text)


def get(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(300 << 20)
        return file.read(8)


def test_a_reset_keeps_what_was_there(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    put(midlayers.path(MAC), b"precious")
    assert midlayers.prepare(MAC, fresh=True).new
    assert get(midlayers.path(MAC)) == bytes(8)
    assert get(midlayers.old_path(MAC)) == b"precious"
    midlayers.restore(MAC, None)
    assert get(midlayers.path(MAC)) == b"precious"
    assert get(midlayers.old_path(MAC)) == bytes(8)


def test_a_reset_that_was_interrupted_does_not_lose_the_old_one(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    put(midlayers.path(MAC), b"precious")
    midlayers.path(MAC).rename(midlayers.old_path(MAC))
    assert midlayers.prepare(MAC, fresh=True).new
    assert get(midlayers.old_path(MAC)) == b"precious"


def test_a_client_can_have_its_own_size(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC, 64 << 20)
    assert midlayers.path(MAC).stat().st_size == 64 << 20


def test_a_clean_one_is_not_touched_by_a_check(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    before = midlayers.path(MAC).stat().st_mtime_ns
    assert midlayers.prepare(MAC, check=True).checked == ""
    assert midlayers.path(MAC).stat().st_mtime_ns == before


def test_one_that_was_not_closed_is_mended(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    unclean(midlayers.path(MAC))
    assert [layer.state for layer in midlayers.layers()] == ["unclean"]
    assert midlayers.prepare(MAC, check=True).checked
    assert [layer.state for layer in midlayers.layers()] == ["clean"]


def test_one_that_cannot_be_mended_is_a_clear_error_and_stays(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    with midlayers.path(MAC).open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    with pytest.raises(UsageError, match="no ext4"):
        midlayers.prepare(MAC, check=True)
    assert midlayers.path(MAC).exists()
    assert [layer.state for layer in midlayers.layers()] == ["damaged"]


def test_a_disk_that_is_nearly_full_gets_no_new_ones(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    midlayers.keep_free = 1 << 60
    assert midlayers.prepare(MAC).new is False  # who has one goes on
    with pytest.raises(NoRoom, match="keep_free"):
        midlayers.prepare(Mac("52:54:00:00:00:02"))
    with pytest.raises(NoRoom):
        midlayers.prepare(MAC, fresh=True)
    assert midlayers.exists(MAC)


def test_a_report_file_without_its_size_is_made_again(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    midlayers.report_path(MAC).write_bytes(b"")
    midlayers.prepare(MAC)
    assert midlayers.report_path(MAC).stat().st_size == REPORT_BYTES


def test_backup_and_restore(midlayers: Midlayers, tmp_path: Path) -> None:
    midlayers.prepare(MAC)
    put(midlayers.path(MAC), b"precious")
    midlayers.backup(MAC, tmp_path / "saved")
    put(midlayers.path(MAC), b"ruined__")
    midlayers.restore(MAC, tmp_path / "saved")
    assert get(midlayers.path(MAC)) == b"precious"
    assert get(midlayers.old_path(MAC)) == b"ruined__"
    with pytest.raises(UsageError, match="there already"):
        midlayers.backup(MAC, tmp_path / "saved")


@pytest.mark.parametrize("content", [b"", bytes(8192), b"x" * 5000])
def test_only_a_file_system_can_be_restored(
    midlayers: Midlayers, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "rubbish").write_bytes(content)
    with pytest.raises(UsageError):
        midlayers.restore(MAC, tmp_path / "rubbish")
    with pytest.raises(UsageError):
        midlayers.restore(MAC, tmp_path / "none")


@pytest.mark.parametrize("size", [1 << 30, 64 << 20])
def test_resize(midlayers: Midlayers, size: int) -> None:
    midlayers.prepare(MAC)
    midlayers.resize(MAC, size)
    assert midlayers.path(MAC).stat().st_size == size
    checked = subprocess.run(
        ["e2fsck", "-fn", midlayers.path(MAC)], capture_output=True, check=False
    )
    assert checked.returncode == 0
    assert midlayers.old_path(MAC).stat().st_size == SIZE


def test_a_size_that_is_too_small_changes_nothing(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    with pytest.raises(HostError, match="resize2fs"):
        midlayers.resize(MAC, 4 << 20)
    assert midlayers.path(MAC).stat().st_size == SIZE
    assert not list(midlayers.directory.glob(".new-*"))


def test_the_list_knows_sizes(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    (layer,) = midlayers.layers()
    assert (layer.mac, layer.size, layer.old) == (MAC, SIZE, False)
    assert 0 < layer.used < 8 << 20


def test_removed_is_gone(midlayers: Midlayers) -> None:
    midlayers.prepare(MAC)
    midlayers.prepare(MAC, fresh=True)
    assert midlayers.remove(MAC, only_old=True) > 0
    assert midlayers.exists(MAC)
    midlayers.remove(MAC)
    assert midlayers.layers() == []
