"""A real boot becomes a trace that the storm can replay."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import trace
from bench.trace import Kind
from tests.boot.conftest import PROGRAMS
from tests.conftest import requires

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]


def test_a_boot_is_recorded(lab_image: Path, tmp_path: Path) -> None:
    requires(*PROGRAMS, "tcpdump")
    out = tmp_path / "boot.trace"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "record", str(out), "--image", str(lab_image)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=350,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = trace.load(out)
    kinds = [op.kind for op in found.ops]
    # iPXE by TFTP, then once more DHCP, the disk, the kernel's disks, and it runs.
    assert [kind for kind in kinds if kind < Kind.READ and kind != Kind.SINGLE] == [
        Kind.DHCP, Kind.TFTP, Kind.DHCP, Kind.FIND, Kind.DISKS,
    ]  # fmt: skip
    assert found.boot_sectors * 512 == (lab_image / "boot.img").stat().st_size
    assert found.total(Kind.SINGLE) * 512 > (lab_image / "initrd").stat().st_size
    assert found.total(Kind.READ) > 0
    assert kinds.count(Kind.TELL) > 0
    assert 0 < found.thought() < 350
    assert list(tmp_path.iterdir()) == [out]
