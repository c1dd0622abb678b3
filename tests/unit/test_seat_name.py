"""What a seat is called and tells at its start: the boot scripts' own code, on a made-up /sys."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.initramfs import busybox
from tests.conftest import requires

SCRIPT = Path(str(resources.files("pxed.client"))) / "keep.sh"
CARDS = {"ens2": "52:54:00:00:00:02", "ens3": "52:54:00:00:00:03"}


def name(place: Path, netif: str | None, before: str = "") -> str:
    """Its name, where the driver says ``netif`` of its /config; None: there is no such disk."""
    requires("busybox", root=False)
    sys, root = place / "sys", place / "root"
    for card, mac in CARDS.items():
        (sys / "class/net" / card).mkdir(parents=True)
        (sys / "class/net" / card / "address").write_text(f"{mac}\n")
    if netif is not None:
        (sys / "block/etherd!e16.3").mkdir(parents=True)
        (sys / "block/etherd!e16.3/netif").write_text(netif)
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").write_text("0b" * 16)
    if before:
        (root / "etc/hostname").write_text(before)
    script = place / "keep.sh"
    script.write_text(SCRIPT.read_text().replace("/sys/", f"{sys}/"))
    asked = f". {script}; wired=' ens2 ens3' config_disk=e16.3; first_start {root}"
    done = subprocess.run(
        [str(busybox()), "sh", "-uc", asked], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return (root / "etc/hostname").read_text().strip()


@pytest.mark.parametrize(
    ("netif", "called"),
    [
        ("ens3\n", "seat-52-54-00-00-00-03"),  # it booted by its second card
        ("ens2\n", "seat-52-54-00-00-00-02"),
        ("ens3,ens2\n", "seat-52-54-00-00-00-03"),
        ("none\n", "seat-52-54-00-00-00-02"),
        (None, "seat-52-54-00-00-00-02"),  # its changes are in memory, or it runs from its own disk
    ],
)
def test_it_is_called_after_the_card_that_the_server_knows(
    tmp_path: Path, netif: str | None, called: str
) -> None:
    assert name(tmp_path, netif) == called


def test_a_name_that_it_has_stays(tmp_path: Path) -> None:
    assert name(tmp_path, "ens3\n", "library-7\n") == "library-7"


@pytest.mark.parametrize("why", ["", "no answer from AoE disk e16.3 within 15 s"])
def test_where_changes_are_lost_who_logs_in_is_told(tmp_path: Path, why: str) -> None:
    requires("busybox", root=False)
    run, root = tmp_path / "run", tmp_path / "root"
    (run / "pxed").mkdir(parents=True)
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("Welcome\n")
    if why:
        (run / "pxed/degraded").write_text(f"{why}\n")
    script = tmp_path / "keep.sh"
    script.write_text(SCRIPT.read_text().replace("/run/", f"{run}/"))
    asked = f". {script}; warn_user {root}"
    subprocess.run([str(busybox()), "sh", "-uc", asked], check=True)
    issue = root / "etc/issue.d/pxed.issue"
    told = issue.read_text() if issue.exists() else ""
    assert (root / "etc/motd").read_text() == f"Welcome\n{told}"
    assert told.endswith(f"lost when this machine goes off: {why}\n" if why else "")
    assert bool(told) == bool(why)
