"""e2fsprogs on what a client wrote: bounded in time and memory, and its words are safe to show."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pxed import ext4
from pxed.errors import HostError


@pytest.fixture
def e2fsck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in its place."""
    path = tmp_path / "bin" / "e2fsck"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


def becomes(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_one_that_does_not_end_is_ended(
    e2fsck: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"

    class Begun(subprocess.Popen[str]):
        """It has said who it is before anybody's patience begins to run out."""

        def communicate(self, *args: Any, **options: Any) -> tuple[str, str]:
            until = time.monotonic() + 60
            while not (pid.exists() and pid.read_text().endswith("\n")):
                assert time.monotonic() < until
                time.sleep(0.01)
            return super().communicate(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", Begun)
    monkeypatch.setattr(ext4, "PATIENCE", 0.2)
    becomes(e2fsck, f"echo $$ > {pid}; exec sleep 1000")
    with pytest.raises(HostError, match=r"e2fsck had not ended after 0\.2 s"):
        ext4.mend(tmp_path / "disk")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_its_memory_is_bounded(e2fsck: Path, tmp_path: Path) -> None:
    wait = 'while [ "$(ulimit -v)" = unlimited ]; do sleep 0.05; done'  # it is set from outside
    becomes(e2fsck, f"{wait}; ulimit -v > {tmp_path}/limit")
    ext4.mend(tmp_path / "disk")
    assert int((tmp_path / "limit").read_text()) == (1 << 30) // 1024


def test_what_it_found_is_told_and_not_its_usual_ending(e2fsck: Path, tmp_path: Path) -> None:
    found = r"config: Directory inode 17, block #0, offset 0: directory corrupted\n"
    ending = (
        r"\n\nconfig: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p)\n"
    )
    becomes(e2fsck, f"printf '{found}{ending}'; exit 4")
    with pytest.raises(HostError, match=r"e2fsck failed: config: .* directory corrupted$"):
        ext4.mend(tmp_path / "disk")


def test_what_a_label_says_does_nothing_to_a_terminal(e2fsck: Path, tmp_path: Path) -> None:
    becomes(e2fsck, r"printf 'first\n\033[2J\377evil\a: UNEXPECTED INCONSISTENCY\n'; exit 4")
    with pytest.raises(HostError, match="UNEXPECTED") as caught:
        ext4.mend(tmp_path / "disk")
    assert str(caught.value).isprintable()
    assert "evil" in str(caught.value)


def test_what_a_person_asks_for_may_take_its_time(e2fsck: Path, tmp_path: Path) -> None:
    becomes(e2fsck, f"sleep 0.3; ulimit -v > {tmp_path}/limit")
    began = time.monotonic()
    ext4.mend(tmp_path / "disk", thorough=True)
    assert time.monotonic() - began >= 0.3
    assert (tmp_path / "limit").read_text() == "unlimited\n"
