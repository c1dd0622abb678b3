"""The systemd units: systemd accepts them, and they leave little open."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import requires

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))


def exposure(unit: Path) -> float:
    requires("systemd-analyze", root=False)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def test_there_are_units() -> None:
    assert [unit.name for unit in UNITS] == ["aoe-fast@.service", "pxed.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_little_is_exposed(unit: Path) -> None:
    assert exposure(unit) <= 2.5


def test_the_measure_can_fail(tmp_path: Path) -> None:
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(unit) > 9


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_knows_every_key(unit: Path, tmp_path: Path) -> None:
    requires("systemd-analyze", root=False)
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    copy = tmp_path / unit.name.replace("@", "@eth0")
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if copy.name in line], done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_keeps_what_the_server_needs_and_no_more(unit: Path) -> None:
    found = re.findall(r"^(?:CapabilityBoundingSet|AmbientCapabilities)=(.*)$",
                       unit.read_text(), flags=re.MULTILINE)  # fmt: skip
    wanted = "CAP_NET_RAW" if unit.name.startswith("aoe") else "CAP_NET_RAW CAP_NET_BIND_SERVICE"
    assert found == [wanted, wanted]
