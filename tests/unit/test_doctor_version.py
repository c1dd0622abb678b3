"""The doctor reads iPXE's version out of its programs."""

from pathlib import Path

import pytest

from pxed.doctor import _ipxe_version


def test_the_version_is_the_string_of_its_own_not_the_format() -> None:
    data = b"..\0iPXE/%s\0..\x001.0.0+git-20190125.36a4c85-5.1\0.."
    assert _ipxe_version(data) == "iPXE 1.0.0+git-20190125.36a4c85-5.1"


def test_a_packed_program_says_so() -> None:
    assert "unknown" in _ipxe_version(b"\x7f" * 1000)


def test_debians_efi_program_has_one() -> None:
    path = Path("/usr/lib/ipxe/snponly.efi")
    if not path.exists():
        pytest.skip("needs Debian's package ipxe: run script/bootstrap")
    assert "git" in _ipxe_version(path.read_bytes())
