"""On a machine that is too slow for CI's time, tests that take minutes give way to all others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIXED = "tests/boot/test_initramfs.py", "tests/boot/test_kiwi_overlay.py", "tests/boot/test_why.py"
"""In the middle one all are long."""


def run(*words: str, minutes: str | None) -> str:
    """What pytest says of these tests with so many minutes for long ones."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PXED_LONG")}
    if minutes is not None:
        env["PXED_LONG_MINUTES"] = minutes
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "", *words]
    ran = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_none_is_begun_when_the_time_is_over() -> None:
    # A plan: where they are not skipped, they must not run for minutes here.
    said = run("--setup-plan", MIXED[1], minutes="0")
    assert "0 of 0 minutes are over" in said, f"a long test would have been begun:\n{said}"


@pytest.mark.parametrize(("minutes", "last"), [("55", MIXED[1]), (None, MIXED[2])])
def test_they_come_last_where_time_counts(minutes: str | None, last: str) -> None:
    said = run("-q", "--collect-only", *MIXED, minutes=minutes)
    names = [line for line in said.splitlines() if "::" in line]
    assert names[-1].startswith(last), f"with {minutes} minutes for long tests {names[-1]} is last"
