"""iPXE of another Debian: only what apt believes, whole or not at all, and where it is put."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pxed.cli import main
from pxed.client import ipxe as fetching
from pxed.client.debs import Apt
from pxed.client.ipxe import fetch_ipxe
from pxed.errors import HostError, UsageError
from tests.conftest import requires

KEY = b"MZ Press Ctrl-B for"
NEW = {
    "snponly.efi": KEY + b" autoexec.ipxe",
    "undionly.kpxe": b"bios",
    "ipxe-arm64.efi": b"MZ arm",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PXED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/ipxe"


def repository(place: Path, files: dict[str, bytes], *, bend: bool = False) -> str:
    """A mirror of one package without a signature; ``bend``: the package is not what it says."""
    requires("apt-get", "dpkg-deb", root=False)
    tree = place / "tree"
    for name, data in files.items():
        (tree / "usr/lib/ipxe").mkdir(parents=True, exist_ok=True)
        (tree / "usr/lib/ipxe" / name).write_bytes(data)
    (tree / "DEBIAN").mkdir()
    about = "Package: ipxe\nVersion: 1.21.1+test-1\nArchitecture: all\nMaintainer: x <x@x>\n"
    (tree / "DEBIAN/control").write_text(f"{about}Description: x\n")
    package = place / "pool/ipxe.deb"
    package.parent.mkdir()
    subprocess.run(["dpkg-deb", "-b", str(tree), str(package)], check=True, capture_output=True)
    data = package.read_bytes()
    lists = place / "dists/trixie/main/binary-amd64"
    lists.mkdir(parents=True)
    text = (f"{about}Filename: pool/ipxe.deb\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\nDescription: x\n")  # fmt: skip
    (lists / "Packages").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (place / "dists/trixie/Release").write_text(
        "Suite: trixie\nCodename: trixie\nComponents: main\nArchitectures: amd64 all\n"
        "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"SHA256:\n {digest} {len(text)} main/binary-amd64/Packages\n"
    )
    if bend:
        package.write_bytes(data[:-8] + b"\0" * 8)
    return f"file:{place}"


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """apt takes a mirror without a signature."""
    monkeypatch.setattr(
        fetching, "_sources", lambda release, mirror: [f"deb [trusted=yes] {mirror} {release} main"]
    )


@pytest.mark.usefixtures("trusting")
def test_its_files_and_what_they_are(tmp_path: Path, cache: Path) -> None:
    target = tmp_path / "ipxe"
    target.mkdir()
    (target / "mine").write_text("stays")
    (target / "snponly.efi").write_text("old")
    said = fetch_ipxe(target, mirror=repository(tmp_path / "m", {**NEW, "ipxe.iso": b"iso"}))
    assert {p.name for p in target.iterdir()} == {*NEW, "mine", "manifest.json"}
    for name, data in NEW.items():
        assert (target / name).read_bytes() == data
        assert (target / name).stat().st_mode & 0o777 == 0o644
    assert json.loads((target / "manifest.json").read_text()) == said
    assert (said["version"], said["release"]) == ("1.21.1+test-1", "trixie")
    assert said["waits_for_key"] is False
    files: Any = said["files"]
    assert files["undionly.kpxe"]["sha256"] == hashlib.sha256(b"bios").hexdigest()
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("trusting")
def test_an_older_one_is_said_to_wait(tmp_path: Path) -> None:
    old = {"snponly.efi": KEY, "undionly.kpxe": b"bios"}
    said = fetch_ipxe(tmp_path / "ipxe", mirror=repository(tmp_path / "m", old))
    assert said["waits_for_key"] is True
    assert not (tmp_path / "ipxe/ipxe-arm64.efi").exists()


def refused(tmp_path: Path, cache: Path, mirror: str) -> str:
    """The error of a fetch, which has changed nothing and left nothing."""
    target = tmp_path / "ipxe"
    target.mkdir()
    (target / "snponly.efi").write_text("old")
    with pytest.raises(HostError) as error:
        fetch_ipxe(target, mirror=mirror)
    assert [p.read_text() for p in target.iterdir()] == ["old"]
    assert list(cache.iterdir()) == []
    return str(error.value)


def test_without_a_signature_it_is_refused(tmp_path: Path, cache: Path) -> None:
    said = refused(tmp_path, cache, repository(tmp_path / "m", NEW))
    assert "is not signed" in said


@pytest.mark.usefixtures("trusting")
def test_a_package_that_is_not_what_the_list_says(tmp_path: Path, cache: Path) -> None:
    said = refused(tmp_path, cache, repository(tmp_path / "m", NEW, bend=True))
    assert "ipxe.deb" in said or "Hash Sum mismatch" in said


@pytest.mark.usefixtures("trusting")
def test_a_package_without_what_seats_need(tmp_path: Path, cache: Path) -> None:
    said = refused(tmp_path, cache, repository(tmp_path / "m", {"snponly.efi": b"MZ"}))
    assert said == "ipxe_1.21.1+test-1_all.deb has no undionly.kpxe: take another release"


@pytest.mark.usefixtures("trusting")
def test_a_place_that_is_none(tmp_path: Path) -> None:
    mirror = repository(tmp_path / "m", NEW)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/x", Path("/proc/x")):
        with pytest.raises(HostError, match=str(place)):
            fetch_ipxe(place, mirror=mirror)


@pytest.mark.usefixtures("trusting")
def test_no_such_mirror(tmp_path: Path, cache: Path) -> None:
    requires("apt-get", root=False)
    said = refused(tmp_path, cache, f"file:{tmp_path}/nowhere")
    assert said.startswith("ipxe cannot be fetched: ")
    assert "nowhere" in said


def test_interrupted_it_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Apt, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_ipxe(tmp_path / "ipxe")
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "ipxe").exists()


@pytest.mark.parametrize(
    ("release", "mirror", "said"),
    [("../x", None, "no code name"), ("trixie", "ftp://x", "is no mirror")],
)
def test_arguments_that_cannot_be(
    tmp_path: Path, release: str, mirror: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        fetch_ipxe(tmp_path / "ipxe", release=release, mirror=mirror)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="apt-get is missing"):
        fetch_ipxe(tmp_path / "ipxe")
    monkeypatch.setattr(fetching, "_KEYS", tmp_path / "keys")
    with pytest.raises(HostError, match="apt install debian-archive-keyring"):
        fetch_ipxe(tmp_path / "ipxe")


@pytest.mark.parametrize(
    ("root", "out", "end"),
    [
        ("", "", "pxed serve takes it from its next start on"),
        ('[tftp]\nroot = "/srv/x"', "", 'to have it served, write root = "STATE/ipxe" below'),
        ("", "o", 'to have it served, write root = "OUT/o" below'),
        ('[tftp]\nroot = "OUT/o"', "o", ""),
    ],
)
def test_the_command_says_who_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, out: str, end: str
) -> None:
    def fetched(target: Path, **_: object) -> dict[str, object]:
        target.mkdir(parents=True)
        return {"version": "1", "waits_for_key": False}

    monkeypatch.setattr(fetching, "fetch_ipxe", fetched)
    state = tmp_path / "state"
    names = {"OUT": str(tmp_path), "STATE": str(state)}
    for short, long in names.items():
        root, end = root.replace(short, long), end.replace(short, long)
    config = tmp_path / "pxed.toml"
    config.write_text(f'interface = "eth0"\nstate_dir = "{state}"\n{root}\n')
    argv = ["ipxe", "fetch", "-c", str(config), *(["--out", f"{tmp_path}/{out}"] if out else [])]
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 0, done.output
    first, *rest = done.output.splitlines()
    assert first == f"iPXE 1 is in {tmp_path / out if out else state / 'ipxe'}"
    assert "".join(rest).startswith(end)
    assert len(rest) == bool(end)
