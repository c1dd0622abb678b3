"""ThreadSanitizer and valgrind over a working server: no race and no bad access in our modules."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import requires
from tests.fuzz.build import ROOT, compile_modules

pytestmark = [pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(3600)]

RACE = re.compile(r"WARNING: ThreadSanitizer.*?={10,}", re.DOTALL)


def run(argv: list[str], where: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """``where``: the directory whose ``aoe_fast`` is meant; -m looks there first."""
    return subprocess.run(
        argv, cwd=where, env=os.environ | more, capture_output=True, text=True, check=False,
        timeout=1700,
    )  # fmt: skip


def test_no_data_race() -> None:
    requires("gcc", "setarch", "ip")
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libtsan.so.2"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).exists():
        pytest.skip("gcc has no ThreadSanitizer here: install libtsan2")
    flags = ["-fsanitize=thread", "-Wno-error", "-Wno-tsan"]
    tree = compile_modules(ROOT / "build" / "tsan", flags, ["-fsanitize=thread"], "gcc")
    done = run(
        ["setarch", "-R", "env", f"LD_PRELOAD={runtime}", sys.executable, "-m",
         "tests.fuzz.stress", "60"],
        tree, PYTHONPATH=f"{tree}:{ROOT}:{sysconfig.get_path('purelib')}",
        TSAN_OPTIONS="exitcode=0:report_signal_unsafe=0:suppressions="
        + str(ROOT / "tests" / "fuzz" / "tsan.supp"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    races = [text for text in RACE.findall(done.stderr) if "aoe_fast" in text]
    assert races == [], races[0]


def test_no_bad_access_and_nothing_uninitialised() -> None:
    requires("valgrind", "ip")
    done = run(
        ["valgrind", "--error-limit=no", "--num-callers=20", "-q", sys.executable, "-m",
         "tests.fuzz.stress", "4"], ROOT, PYTHONMALLOC="malloc",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    blocks = re.split(r"\n==\d+== \n", done.stderr)
    ours = [block for block in blocks if "/aoe_fast/" in block or "aoe_fast." in block]
    assert ours == [], ours[0]
