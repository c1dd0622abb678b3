"""Versions that were removed are named to the seats, and nothing else ever is."""

import json
from pathlib import Path

import pytest

from pxed.former import Former
from pxed.library import Library
from pxed.provision import ORDERS_BYTES


def nobody(_image: object) -> str:
    return ""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path)


def add(library: Library, version: str, root: str = "", name: str = "lab") -> None:
    with library.making(name, version) as work:
        (work / "disk").write_text(root or version)
        devices = {"boot": "disk", "root": "disk"}
        manifest = {"name": name, "version": version, "class": "x86", "devices": devices}
        (work / "manifest.json").write_text(json.dumps(manifest))


def remove(library: Library, spec: str) -> None:
    library.remove(library.find(spec), nobody)


def told(library: Library) -> list[str]:
    head, *names = Former(library.directory).words().decode().splitlines() or [""]
    assert head == ("pxed-former 1" if names else "")
    return names


def test_what_was_removed_is_told_newest_first(library: Library) -> None:
    for version in ("1", "2", "3"):
        add(library, version)
    library.use("lab@3")
    assert told(library) == []
    remove(library, "lab@1")
    remove(library, "lab@2")
    assert told(library) == ["lab@2", "lab@1"]


def test_a_version_that_is_there_again_is_not(library: Library) -> None:
    add(library, "1")
    add(library, "2")
    former = Former(library.directory)
    library.use("lab@2")
    remove(library, "lab@1")
    assert b"lab@1" in former.words()
    add(library, "1")
    assert former.words() == b""


def test_nor_one_that_is_there_under_another_name(library: Library) -> None:
    """Its root says the old name, and seats call their layer after that."""
    add(library, "1", "the same")
    add(library, "2")
    add(library, "1", "the same", name="exam")
    library.use("lab@2")
    remove(library, "lab@1")
    assert told(library) == []
    library.drop_channel("exam", "stable", last=True)
    remove(library, "exam@1")
    assert told(library) == ["exam@1", "lab@1"]


def test_what_merely_is_not_there_is_not(library: Library) -> None:
    """A library that is not mounted must cost no seat its layer."""
    add(library, "1")
    library.directory.joinpath("lab").rename(library.directory.parent / f"{library.directory}.away")
    assert told(library) == []


def test_no_name_is_cut_where_there_are_too_many(library: Library) -> None:
    names = [[f"lab@2026.{number:04}", ""] for number in range(1000)]
    Former(library.directory).path.write_text(json.dumps(names))
    words = Former(library.directory).words()
    assert len(words) <= ORDERS_BYTES
    assert words.decode().splitlines()[1] == "lab@2026.0999"
    assert all(len(line) == len("lab@2026.0999") for line in words.decode().splitlines()[1:])


@pytest.mark.parametrize(
    "said", ["", "{", "[1]", '[["../../etc@x", ""]]', '[["lab@1\\nlab@2", ""]]']
)
def test_a_damaged_file_says_nothing(library: Library, said: str) -> None:
    Former(library.directory).path.write_text(said)
    assert told(library) == []
