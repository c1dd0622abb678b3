"""Image directories and manifests: found by name and version, refused when they are not whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from pxed import images
from pxed.errors import UsageError


def make(root: Path, name: str, version: str, /, **changes: Any) -> Path:
    directory = root / name / version
    directory.mkdir(parents=True)
    for device in ("boot.img", "root.img"):
        (directory / device).write_bytes(bytes(4096))
    manifest = {
        "name": name,
        "version": version,
        "class": "x86",
        "devices": {"boot": "boot.img", "root": "root.img"},
    } | changes
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_a_name_means_its_newest_version(tmp_path: Path) -> None:
    for version in ("2026.9", "2026.11", "2026.10"):
        make(tmp_path, "lab", version)
    assert str(images.find(tmp_path, "lab", "x86")) == "lab@2026.11"


def test_a_version_can_be_named(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    make(tmp_path, "lab", "2")
    assert images.find(tmp_path, "lab@1", "x86").version == "1"


def test_the_only_image_needs_no_name(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    assert images.find(tmp_path, None, "x86").name == "lab"


def test_two_images_and_no_choice_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    make(tmp_path, "other", "1")
    with pytest.raises(UsageError, match="there are lab, other"):
        images.find(tmp_path, None, "x86")


def test_a_missing_image_names_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    with pytest.raises(UsageError, match=r"no image labb .*there: lab@1"):
        images.find(tmp_path, "labb", "x86")


def test_no_image_at_all_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pxed image build minimal"):
        images.find(tmp_path / "none", None, "x86")


def test_an_image_of_another_class_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1", **{"class": "rpi"})
    with pytest.raises(UsageError, match="class rpi, not x86"):
        images.find(tmp_path, "lab", "x86")


def test_a_version_without_manifest_is_not_there_yet(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    (make(tmp_path, "lab", "2") / "manifest.json").unlink()
    assert images.find(tmp_path, "lab", "x86").version == "1"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"version": ""},
        {"class": "arm"},
        {"devices": {"boot": "boot.img"}},
        {"devices": {"boot": "boot.img", "root": "gone.img"}},
        {"devices": {"boot": "boot.img", "root": "../../../outside.img"}},
        {"devices": {"boot": "boot.img", "root": "/etc/passwd"}},
        {"devices": {"boot": "boot.img", "root": "root.img", "extra": "root.img"}},
    ],
)
def test_an_untrue_manifest_is_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "outside.img").write_bytes(bytes(4096))
    directory = make(tmp_path, "lab", "1", **changes)
    with pytest.raises(UsageError, match=r"manifest\.json: "):
        images.load(directory)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    directory = make(tmp_path, "lab", "1")
    (directory / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json: "):
        images.load(directory)


def test_a_name_cannot_lead_out_of_the_images(tmp_path: Path) -> None:
    make(tmp_path, "lab", "1")
    with pytest.raises(UsageError):
        images.find(tmp_path / "lab", "../lab", "x86")
