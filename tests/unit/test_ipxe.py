"""Which iPXE is served, what goes by another name, and what is said of it."""

import json
from pathlib import Path

import pytest

from pxed import doctor, ipxe
from pxed.config import Config, parse
from pxed.errors import UsageError
from pxed.http.site import Found, Site


def config(state: Path, root: str = "") -> Config:
    return parse(f'interface = "eth0"\nstate_dir = "{state}"\n{root}')


def fetched(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    about = {name: {"size": len(d), "sha256": ipxe.digest(d)} for name, d in files.items()}
    (root / "manifest.json").write_text(json.dumps({"version": "1.21.1+x", "files": about}))
    return root


def test_what_was_fetched_comes_before_the_package_and_after_the_configuration(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    assert ipxe.directory(config(state)) == Path("/usr/lib/ipxe")
    (state / "ipxe").mkdir(parents=True)  # begun, and not there
    assert ipxe.directory(config(state)) == Path("/usr/lib/ipxe")
    (state / "ipxe/manifest.json").write_text("{}")
    assert ipxe.directory(config(state)) == state / "ipxe"
    assert ipxe.directory(config(state, '[tftp]\nroot = "/srv/x"')) == Path("/srv/x")


def test_debians_program_for_arm64_stands_in_for_one_that_is_not_there(tmp_path: Path) -> None:
    asked = "snponly-arm64.efi"
    assert ipxe.stand_ins(tmp_path) == {}
    assert ipxe.program(tmp_path, asked) == tmp_path / asked
    (tmp_path / "ipxe-arm64.efi").write_bytes(b"MZ")
    assert ipxe.stand_ins(tmp_path) == {asked: tmp_path / "ipxe-arm64.efi"}
    site = Site(lambda _: pytest.fail("no image"), {}, tmp_path, {asked})
    assert site.find(f"/ipxe/{asked}", "") == Found(tmp_path / "ipxe-arm64.efi")
    (tmp_path / asked).write_bytes(b"MZ own")
    assert ipxe.stand_ins(tmp_path) == {}
    assert ipxe.program(tmp_path, asked) == tmp_path / asked


def test_a_script_of_the_administrators_is_served_and_not_ours(tmp_path: Path) -> None:
    site = Site(lambda _: pytest.fail("no image"), {}, tmp_path, {"snponly.efi"})
    found = site.find("/ipxe/autoexec.ipxe", "")
    assert found is not None
    assert found.content.startswith(b"#!ipxe\n")
    assert found.content == ipxe.script(tmp_path)
    (tmp_path / "autoexec.ipxe").write_text("#!ipxe\nshell\n")
    assert ipxe.script(tmp_path) is None
    assert site.find("/ipxe/autoexec.ipxe", "") == Found(tmp_path / "autoexec.ipxe")


def test_a_manifest_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert ipxe.manifest(tmp_path) == {}
    for text in ("{}", "no JSON", '{"version": "1", "files": {"x": 3}}', "[]"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UsageError, match=r"manifest\.json: cannot be read .*pxed ipxe fetch"):
            ipxe.manifest(tmp_path)


def test_the_doctor_says_which_one_and_whether_it_waits(tmp_path: Path) -> None:
    files = {"snponly.efi": b"Press Ctrl-B, autoexec.ipxe", "undionly.kpxe": b"packed"}
    root = fetched(tmp_path / "state/ipxe", files)
    found = list(doctor.check_boot_files(config(tmp_path / "state")))
    assert [(each.grade, each.todo) for each in found] == [("ok", ""), ("ok", "")]
    assert all("iPXE 1.21.1+x" in each.text and str(root) in each.text for each in found)
    assert not any("2 s" in each.text for each in found)


def test_the_doctor_finds_what_was_changed(tmp_path: Path) -> None:
    files = {"snponly.efi": b"Press Ctrl-B, autoexec.ipxe", "undionly.kpxe": b"packed"}
    root = fetched(tmp_path / "state/ipxe", files)
    (root / "undionly.kpxe").write_bytes(b"packet")
    found = list(doctor.check_boot_files(config(tmp_path / "state")))
    bad = [(each.text, each.todo) for each in found if each.grade == "BROKEN"]
    assert bad == [
        (f"{root}/undionly.kpxe is not what was fetched", "fetch it again: pxed ipxe fetch")
    ]


def test_the_doctor_tells_of_the_wait(tmp_path: Path) -> None:
    for name in ("snponly.efi", "undionly.kpxe"):
        (tmp_path / name).write_bytes(b"MZ Press Ctrl-B for")
    found = list(doctor.check_boot_files(config(tmp_path, f'[tftp]\nroot = "{tmp_path}"')))
    assert {each.grade for each in found} == {"ok"}
    (told,) = [each for each in found if each.todo]
    assert told.text.endswith("for UEFI PCs; each start waits 2 s for a key")
    assert told.todo == "pxed ipxe fetch brings one that does not (docs/operators.md, iPXE)"
