"""A Debian image of the same day, built on another machine: the same bytes. Long.

From packages that were fetched before, and from others: where the mirror has newer ones by then,
the manifests say so.
"""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pxed.errors import HostError
from tests.boot.debian import KERNEL, KEYBOARD, PACKAGES, SCRIPT
from tests.conftest import from_mirror, requires

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(900)]

FILES = ("packages", "boot.img", "root.squashfs", "tfm.img", "vmlinuz", "initrd", "initrd.tfm")


@pytest.mark.parametrize("cache", [pytest.param("", marks=pytest.mark.ci), "another"])
def test_debian_again(debian_image: Path, tmp_path: Path, cache: str) -> None:
    requires("unshare", "hostname")
    day = json.loads((debian_image / "manifest.json").read_text())["released"]
    epoch = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
    (tmp_path / "script").write_bytes(SCRIPT)
    (tmp_path / "another").mkdir()
    packages = [word for name in PACKAGES for word in ("--package", name)]
    argv = [
        sys.executable, "-m", "pxed", "image", "build", "debian", "--name", "lab",
        "--version", "1", "--kernel", KERNEL, *packages, "--script", str(tmp_path / "script"),
        "--user", "student", "--keyboard", KEYBOARD, "--compression", "lz4",
        "--state-dir", str(tmp_path / "state"),
    ]  # fmt: skip
    enter = 'hostname beta && umask 077 && cd "$1" && shift && exec "$@"'
    env = {
        **os.environ, "SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(tmp_path / "another"),
        "TZ": "Pacific/Kiritimati", "LC_ALL": "POSIX", "LANG": "de_DE.UTF-8", "HOME": "/",
        "PYTHONHASHSEED": "7", **({"PXED_CACHE": str(tmp_path / cache)} if cache else {}),
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", enter, "sh", str(tmp_path / "another"), *argv],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    with from_mirror():
        if done.returncode:
            raise HostError(done.stderr)
    said = [
        json.loads((folder / "manifest.json").read_text())["origin"]["packages"]
        for folder in (debian_image, tmp_path / "state/images/lab/1")
    ]
    if said[0] != said[1]:
        assert cache, "the same packages were unpacked"
        pytest.skip("the mirror has other packages than before, and the manifests say so")
    for name in FILES:
        first, second = (
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for folder in (debian_image, tmp_path / "state/images/lab/1")
        )
        assert first == second, name
