"""The chain for Secure Boot: which files it takes, and what GRUB is told."""

import shlex
from pathlib import Path

import pytest

from pxed import config, signed
from pxed.bootable import Kernel
from pxed.choice import Choice
from pxed.errors import UsageError
from pxed.images import Image
from pxed.mac import Mac

MAC = Mac("52:54:00:00:00:01")


def test_what_is_in_the_root_comes_first(tmp_path: Path) -> None:
    debians = signed.program(tmp_path, "shimx64.efi")
    assert debians == signed.files()["shimx64.efi"]
    for name in ("shimx64.efi", "grubx64.efi"):
        (tmp_path / name).touch()
        assert signed.program(tmp_path, name) == tmp_path / name
    assert signed.missing(tmp_path) == ""


def test_what_is_missing_is_named_with_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = str(tmp_path / "none")
    monkeypatch.setattr(signed, "_DEBIANS", {"shimx64.efi": (nowhere, "shim-signed")})
    assert signed.missing(tmp_path) == f"{nowhere} missing: install Debian's shim-signed"


def test_the_command_line_reaches_the_kernel_as_it_is() -> None:
    kernel = Kernel(Path("/v"), Path("/i"), "a=$x; b='{c}'")
    said = signed.configuration("(tftp,10.0.0.1)/image/lab@1", kernel, 17, MAC).decode()
    line = next(each for each in said.splitlines() if each.startswith("linux"))
    assert shlex.split(line) == [
        "linux", "(tftp,10.0.0.1)/image/lab@1/vmlinuz", "a=$x;", "b='{c}'",
        "pxed.shelf=17", "BOOTIF=01-52-54-00-00-00-01",
    ]  # fmt: skip
    assert "$" not in line.replace("'a=$x;'", "")


@pytest.mark.parametrize(("boot", "why"), [("san", "needs boot"), ("kernel", "shim-signed")])
def test_what_it_needs_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, why: str
) -> None:
    monkeypatch.setattr(signed, "_DEBIANS", {"shimx64.efi": ("/nowhere", "shim-signed")})
    text = f'interface = "eth0"\n[tftp]\nroot = "{tmp_path}"\n[class.x86]\nsecure_boot = true\n'
    choice = Choice(config.parse(f'{text}boot = "{boot}"\n'))
    kernel = Kernel(Path("/v"), Path("/i"), "")
    choice.images = {"x86": Image("lab", "1", "x86", Path("/"), {}, kernel, None)}
    with pytest.raises(UsageError, match=why):
        choice.check()
