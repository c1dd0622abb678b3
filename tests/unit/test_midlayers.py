"""Midlayers: real file systems, sparse, never overwritten, complete or not there."""

import re
import subprocess
from pathlib import Path

import pytest

from pxed.errors import HostError
from pxed.mac import Mac
from pxed.midlayers import REPORT_BYTES, Midlayers
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
    assert midlayers.prepare(MAC) is True
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
    assert midlayers.prepare(MAC) is False
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
