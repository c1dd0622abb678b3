"""Which bytes a name stands for; nothing outside the root."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pxed.errors import UsageError
from pxed.tftp import files as module
from pxed.tftp.codec import Code, TftpError
from pxed.tftp.files import Files, clean


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"A")
    (folder / "sub" / "Mixed.Bin").write_bytes(b"M")
    (tmp_path / "secret").write_bytes(b"S")
    return folder


@pytest.fixture(params=["openat2", "walk"])
def files(
    request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Files]:
    """The same tests on a kernel with and without openat2."""
    if request.param == "walk":
        monkeypatch.setattr(module, "_SYS_OPENAT2", 0xFFFF)
    made = Files(root)
    yield made
    made.close()
    made.close()


def content(files: Files, name: str) -> bytes:
    file = files.open(name)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


def code(files: Files, name: str) -> int:
    with pytest.raises(TftpError) as caught:
        files.open(name)
    return caught.value.code


@pytest.mark.parametrize("name", ["a.bin", "/a.bin", "\\a.bin", "//a.bin", "./a.bin"])
def test_spellings(files: Files, name: str) -> None:
    assert content(files, name) == b"A"


def test_backslash_is_slash(files: Files) -> None:
    assert content(files, "\\sub\\Mixed.Bin") == b"M"


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "..\\secret", "/..", "a/.."])
def test_upwards_is_refused(files: Files, name: str) -> None:
    assert code(files, name) == Code.ACCESS


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "sub/../../secret"])
def test_a_symlink_out_is_refused(files: Files, root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    assert code(files, "link") == Code.ACCESS


def test_a_symlinked_directory_out_is_refused(files: Files, root: Path) -> None:
    (root / "dir").symlink_to("..")
    assert code(files, "dir/secret") in (Code.ACCESS, Code.NOT_FOUND)


@pytest.mark.parametrize("name", ["nothing", "sub/nothing", "a.bin/x", "x" * 5000, ""])
def test_missing(files: Files, name: str) -> None:
    assert code(files, name) == Code.NOT_FOUND


def test_a_directory_or_a_pipe_is_no_file(files: Files, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert code(files, "sub") == Code.ACCESS
    assert code(files, "pipe") == Code.ACCESS


def test_a_symlink_inside_is_followed(root: Path) -> None:
    (root / "link").symlink_to("sub/Mixed.Bin")
    assert content(Files(root), "link") == b"M"


def test_case(root: Path) -> None:
    assert code(Files(root), "SUB/mixed.bin") == Code.NOT_FOUND
    assert content(Files(root, fold_case=True), "SUB/mixed.bin") == b"M"
    assert code(Files(root, fold_case=True), "SUB/nothing") == Code.NOT_FOUND


def test_virtual_and_alias(root: Path, tmp_path: Path) -> None:
    made = Files(root, virtual={"a.bin": b"V"}, aliases={"rom": tmp_path / "secret"})
    assert content(made, "/a.bin") == b"V"
    assert content(made, "rom") == b"S"


def test_the_roots_own_file_comes_before_one_from_elsewhere(root: Path, tmp_path: Path) -> None:
    """Also one that was put there while it serves."""
    made = Files(root, aliases={"shim.efi": tmp_path / "secret"})
    elsewhere = content(made, "shim.efi")
    (root / "shim.efi").write_bytes(b"own")
    assert content(made, "shim.efi") == b"own" != elsewhere
    made.close()


def test_without_a_root() -> None:
    assert code(Files(), "a.bin") == Code.NOT_FOUND


def test_a_mount_is_a_directory_of_its_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pi").mkdir()
    (tmp_path / "pi" / "start4.elf").write_bytes(b"P")
    made = Files(root)
    made.mount("10abcdef", tmp_path / "pi")
    assert content(made, "10abcdef/start4.elf") == b"P"
    assert code(made, "10abcdef/a.bin") == Code.NOT_FOUND
    made.unmount("10abcdef")
    made.unmount("10abcdef")
    assert code(made, "10abcdef/start4.elf") == Code.NOT_FOUND


def test_no_such_root(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot serve .*nothing by TFTP"):
        Files(tmp_path / "nothing")


def test_a_closed_file_is_closed_once(root: Path) -> None:
    file = Files(root).open("a.bin")
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(0, 1)


def test_clean() -> None:
    assert clean("\\\\boot\\x64//a") == "boot/x64/a"
