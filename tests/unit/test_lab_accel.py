"""Which accelerator is chosen, and that the choice is made once."""

from pathlib import Path

import pytest

from pxed.errors import HostError
from pxed.lab import accel
from tests.conftest import requires


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXED_CACHE", str(tmp_path))
    monkeypatch.delenv("PXED_ACCEL", raising=False)
    monkeypatch.setattr(accel, "_chosen", None)


@pytest.mark.parametrize(("runs", "expected"), [(True, "kvm"), (False, "tcg")])
def test_kvm_only_if_a_guest_runs(
    runs: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("qemu-system-x86_64", root=False)
    monkeypatch.setattr(accel, "_kvm_runs", lambda limit: runs)
    assert accel.pick_accel() == expected


def test_the_probe_runs_once_for_each_boot_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("qemu-system-x86_64", root=False)
    probes: list[float] = []

    def probe(limit: float) -> bool:
        probes.append(limit)
        return False

    monkeypatch.setattr(accel, "_kvm_runs", probe)
    accel.pick_accel()
    monkeypatch.setattr(accel, "_chosen", None)  # as another process
    assert accel.pick_accel() == "tcg"
    assert len(probes) == 1
    (note,) = tmp_path.glob("accel-*")
    note.rename(tmp_path / "accel-another-boot")
    monkeypatch.setattr(accel, "_chosen", None)
    accel.pick_accel()
    assert len(probes) == 2
    assert len(list(tmp_path.glob("accel-*"))) == 1


def test_the_environment_decides_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PXED_ACCEL", "kvm")
    assert accel.pick_accel() == "kvm"
    monkeypatch.setenv("PXED_ACCEL", "fast")
    with pytest.raises(HostError, match="kvm and tcg are allowed"):
        accel.pick_accel()


def test_without_qemu_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt install qemu-system-x86"):
        accel.pick_accel()
