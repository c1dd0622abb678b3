"""The hash of a password in its file: what is taken and what is refused; nothing quotes it."""

import subprocess
from pathlib import Path

import pytest

from pxed.client.account import check_hash, read_hash
from pxed.errors import UsageError
from tests.conftest import requires

SHA512 = "$6$salt$" + "x" * 86
YESCRYPT = "$y$j9T$abcdefghijklmnop./$" + "x" * 43


def no_warning(text: str) -> None:
    raise AssertionError(text)


def written(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    [
        SHA512,
        "$6$rounds=5000$salt$" + "x" * 86,
        YESCRYPT,
        "$2b$12$" + "x" * 53,
        "$5$salt$" + "x" * 43,
        "$1$salt$" + "x" * 22,
    ],
)
def test_hashes_that_are_whole(text: str, tmp_path: Path) -> None:
    assert read_hash(written(tmp_path / "hash", f"{text}\n".encode()), no_warning) == text


@pytest.mark.parametrize("method", ["-6", "-5", "-1"])
def test_what_a_real_program_prints_is_taken(method: str) -> None:
    requires("openssl", root=False)
    argv = ["openssl", "passwd", method, "learn it"]
    made = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    assert check_hash(made) == made


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (f"{SHA512}\n{SHA512}\n".encode(), "has 2 lines"),
        (f"{SHA512}\nroot:{SHA512}".encode(), "has 2 lines"),
        (b"correct horse\n", "mkpasswd"),
        (b"correcthorse\n", "mkpasswd"),
        (b"\xff\xfe\0", "mkpasswd"),
        (b"x" * 10000, "mkpasswd"),
        (SHA512[:-1].encode(), "damaged: its last part has 85 characters instead of 86"),
        (f"{SHA512}x".encode(), "damaged"),
        (b"$6$$", "mkpasswd"),
        (b"$zz$salt$" + b"x" * 43, "does not name"),
        (f"student:{SHA512}".encode(), "mkpasswd"),
    ],
)
def test_what_is_none_is_refused_and_not_quoted(data: bytes, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "hash", data)
    with pytest.raises(UsageError, match=said) as caught:
        read_hash(path, no_warning)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "horse" not in str(caught.value)
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize(("mode", "who"), [(0o644, "everybody"), (0o640, "its group")])
def test_a_file_that_others_can_read_is_taken_with_a_warning(
    mode: int, who: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "hash", SHA512.encode(), mode)
    said: list[str] = []
    assert read_hash(path, said.append) == SHA512
    assert said == [f"{path} can be read by {who} on this machine: chmod 600 {path}"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_hash(tmp_path / "hash", no_warning)
