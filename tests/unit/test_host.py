"""What the state directory's disk refuses, in words."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pxed.errors import HostError
from pxed.host import claim


@pytest.mark.parametrize("systemd", [False, True])
def test_a_state_directory_that_is_read_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: bool
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    if systemd:  # whose sandbox leaves only what a unit names
        monkeypatch.setenv("INVOCATION_ID", "1")
    with pytest.raises(HostError, match=r"check it \(fsck\)") as caught:
        claim(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: Read-only file system: ")
    assert ("ReadWritePaths=" in str(caught.value)) is systemd
