"""The table of AoE rules in tests/README.md names tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
RULES = [
    (match[1].strip(), re.findall(r"`(test_\w+)`", match[2]))
    for match in re.finditer(r"^\| ([^|]+)\|([^|]+)\|$", (TESTS / "README.md").read_text(), re.M)
    if "test_" in match[2]
]
THERE = {
    name
    for path in TESTS.rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
}


@pytest.mark.parametrize(("rule", "tests"), RULES, ids=[rule for rule, _ in RULES])
def test_every_rule_has_its_tests(rule: str, tests: list[str]) -> None:
    assert set(tests) <= THERE, rule


def test_the_table_was_read() -> None:
    assert len(RULES) > 30
