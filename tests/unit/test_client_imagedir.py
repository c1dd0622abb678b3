"""An image directory in the making: there whole or not at all, and one line says why not."""

import errno
import os
from pathlib import Path

import pytest

from pxed.client.imagedir import Manifest, image_directory
from pxed.errors import HostError, UsageError

MANIFEST = Manifest("lab", "1", "x86", "quiet")


def test_it_appears_when_it_is_whole_also_where_an_empty_directory_waits(tmp_path: Path) -> None:
    target = tmp_path / "lab/1"
    target.mkdir(parents=True)
    with image_directory(target, MANIFEST) as work:
        (work / "root.squashfs").write_bytes(b"root")
        assert list(target.iterdir()) == []
    assert {path.name for path in target.iterdir()} == {"manifest.json", "root.squashfs"}
    assert list(target.parent.iterdir()) == [target]


def test_of_two_builds_of_one_version_the_second_is_told_and_takes_nothing_away(
    tmp_path: Path,
) -> None:
    target = tmp_path / "lab/1"
    with (
        pytest.raises(UsageError, match="lab/1 was made by somebody else meanwhile"),
        image_directory(target, MANIFEST),
        image_directory(target, MANIFEST) as first,
    ):
        (first / "mine").touch()
    assert {path.name for path in target.iterdir()} == {"manifest.json", "mine"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, number: int
) -> None:
    words = os.strerror(number)
    with (
        pytest.raises(HostError, match=rf"/to: {words}: nothing was made$"),
        image_directory(tmp_path / "1", MANIFEST),
    ):
        raise OSError(number, words, "/from", None, "/to")  # as shutil.copyfile says it
    with (
        pytest.raises(HostError, match=rf"{tmp_path}/1: {words}"),
        image_directory(tmp_path / "1", MANIFEST),
    ):
        raise OSError(number, words)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_is_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), image_directory(tmp_path / "1", MANIFEST) as work:
        work.read_bytes()
    assert list(tmp_path.iterdir()) == []
