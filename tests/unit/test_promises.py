"""What the documents promise is proved by tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("promises.md", "security.md", "vulnerabilities.md", "boot-protocols.md")
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE)
}

HEADS = ("| rule |", "| cause |")


def named(text: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    names = named((ROOT / "docs" / page).read_text())
    assert names
    assert [name for name in names if name not in TESTS] == []


def test_every_promise_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines()
            if line.startswith("|")]  # fmt: skip
    table: list[str] = []
    for line in rows:
        if line.startswith("| promise"):
            table = []
        table.append(line)
        if not line.startswith(("| promise", "|---", "| |", "| acknowledged", "| the server",
                                "| power")):  # fmt: skip
            assert named(line), line
    assert len(rows) > 30


def test_every_rule_of_the_boot_protocols_names_a_test() -> None:
    lines = (ROOT / "docs" / "boot-protocols.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(HEADS)]
    assert [row for row in rows if not named(row.split("|")[2])] == []
    assert len(rows) > 50
