"""What a seat is called and tells at its start: the boot scripts' own code, on a made-up /sys."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pxed.client.initramfs import busybox
from tests.conftest import requires

SCRIPT = Path(str(resources.files("pxed.client"))) / "keep.sh"
CARDS = {"ens2": "52:54:00:00:00:02", "ens3": "52:54:00:00:00:03"}


def made_up(place: Path, disk: str, netif: str | None) -> None:
    """A /sys with the cards; ``netif``: what the driver says of ``disk``, None: there is none."""
    for card, mac in CARDS.items():
        (place / "sys/class/net" / card).mkdir(parents=True)
        (place / "sys/class/net" / card / "address").write_text(f"{mac}\n")
    if netif is not None:
        (place / f"sys/block/etherd!{disk}").mkdir(parents=True)
        (place / f"sys/block/etherd!{disk}/netif").write_text(netif)


def name(place: Path, netif: str | None, before: str = "") -> str:
    """Its name, where the driver says ``netif`` of its /config; None: there is no such disk."""
    requires("busybox", root=False)
    sys, root = place / "sys", place / "root"
    made_up(place, "e16.3", netif)
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


@pytest.mark.parametrize(
    ("netif", "metrics"),
    [("ens3\n", {"ens2": 2048, "ens3": 1024}), ("ens3,ens2\n", {"ens2": 1024, "ens3": 1024}),
     (None, {"ens2": 1024, "ens3": 1024})],
)  # fmt: skip
def test_the_card_that_carries_the_root_has_the_first_way_out(
    tmp_path: Path, netif: str | None, metrics: dict[str, int]
) -> None:
    requires("busybox", root=False)
    made_up(tmp_path, "e16.1", netif)
    run = tmp_path / "run"
    script = tmp_path / "keep.sh"
    text = SCRIPT.read_text().replace("/sys/", f"{tmp_path}/sys/").replace("/run/", f"{run}/")
    script.write_text(text)
    asked = f". {script}; wired=' ens2 ens3' root_disk=e16.1; keep_link {tmp_path}"
    subprocess.run([str(busybox()), "sh", "-uec", asked], check=True)
    for card, metric in metrics.items():
        said = (run / f"systemd/network/05-pxed-{card}.network").read_text()
        assert said.count(f"RouteMetric={metric}\n") == said.count("RouteMetric=") == 2


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
