"""The build with faults (``aoe_fast/faults.h``), made once for each state of the sources."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHERE = ROOT / "build" / "faults"


def build() -> Path:
    """A directory for PYTHONPATH whose ``aoe_fast`` has faults; the usual build is not touched."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "aoe_fast").iterdir()):
        if path.suffix in (".pyx", ".pxd", ".h", ".py", ".so"):
            digest.update(path.name.encode() + path.read_bytes())
    want = digest.hexdigest()
    stamp = WHERE / "stamp"
    if stamp.exists() and stamp.read_text() == want:
        return WHERE
    shutil.rmtree(WHERE, ignore_errors=True)
    shutil.copytree(ROOT / "aoe_fast", WHERE / "aoe_fast",
                    ignore=shutil.ignore_patterns("*.c", "__pycache__"))  # fmt: skip
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(WHERE),
         "--build-temp", str(WHERE / "objects"), "--force"],
        cwd=ROOT, env=os.environ | {"PXED_FAULTS": "1"}, check=True, capture_output=True,
    )  # fmt: skip
    stamp.write_text(want)
    return WHERE


def environment(faults: str) -> dict[str, str]:
    """The environment of a program that is to have ``faults`` (the words are in faults.h)."""
    return os.environ | {"PYTHONPATH": str(build()), "AOE_FAULTS": faults}
