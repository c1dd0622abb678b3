"""--password-file of pxed image build debian, got wrong: one line, and nothing is built."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import requires

pytestmark = pytest.mark.netns

SHA512 = "$6$salt$" + "x" * 86


def refused(tmp_path: Path, *words: str) -> str:
    requires("mmdebstrap")
    argv = [sys.executable, "-m", "pxed", "image", "build", "debian", "--name", "lab",
            "--state-dir", str(tmp_path / "state"), *words]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "state/images/lab").exists()
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        (f"{SHA512}\n{SHA512}\n", "has 2 lines"),
        ("secret words\n", "by its hash"),
        (SHA512[:-5], "is damaged"),
    ],
    ids=["empty", "two", "plain", "cut"],
)
def test_what_is_no_hash(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "hash").write_text(content)
    line = refused(tmp_path, "--user", "me", "--password-file", str(tmp_path / "hash"))
    assert said in line
    assert "secret" not in line
    assert "xxx" not in line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    line = refused(tmp_path, "--user", "me", "--password-file", str(tmp_path / "hash"))
    assert "does not exist" in line


def test_a_password_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "hash").write_text(SHA512)
    assert "--user" in refused(tmp_path, "--password-file", str(tmp_path / "hash"))


def test_a_file_that_everybody_can_read_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "hash").write_text(SHA512)
    (tmp_path / "hash").chmod(0o644)
    argv = [sys.executable, "-m", "pxed", "image", "build", "debian", "--user", "me",
            "--password-file", str(tmp_path / "hash"), "--locale", "none at all",
            "--state-dir", str(tmp_path / "state")]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "can be read by everybody on this machine: chmod 600" in done.stderr
    assert "no locale" in done.stderr  # it went on
