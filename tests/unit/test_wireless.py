"""Wi-Fi is refused by name at the start (M16); no such card is needed: the system's files are."""

from pathlib import Path

import pytest

from pxed.errors import UsageError
from pxed.mac import Mac
from pxed.net import wireless
from pxed.net.link import Link
from pxed.net.wireless import refuse_wireless


@pytest.fixture
def sys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """eth0, wlan0, and what can be built on them."""
    for index, (name, below) in enumerate(
        {"eth0": [], "wlan0": [], "br0": ["eth0", "wlan0"], "br1": ["eth0"],
         "wlan0.5": ["wlan0"]}.items(), 2,
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "ifindex").write_text(f"{index}\n")
        (tmp_path / name / "uevent").write_text(f"INTERFACE={name}\nIFINDEX={index}\n")
        for each in below:
            (tmp_path / name / f"lower_{each}").mkdir()
    (tmp_path / "wlan0" / "phy80211").mkdir()
    monkeypatch.setattr(wireless, "names", lambda: ["eth0", "wlan0", "br0", "br1"])
    return tmp_path


def link(sys: Path, name: str) -> Link:
    index = int((sys / name / "ifindex").read_text())
    return Link(name, index, Mac("52:54:00:00:00:01"), 1500, True, True, ())


@pytest.mark.parametrize("name", ["eth0", "br1"])
def test_a_wired_one(sys: Path, name: str) -> None:
    assert refuse_wireless(link(sys, name), sys) == ""


@pytest.mark.parametrize("name", ["wlan0", "wlan0.5"])
def test_a_wireless_one(sys: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{name} is wireless.*needs a wire.*eth0"):
        refuse_wireless(link(sys, name), sys)


def test_one_that_only_its_type_gives_away(sys: Path) -> None:
    (sys / "eth0" / "uevent").write_text("DEVTYPE=wlan\nINTERFACE=eth0\n")
    with pytest.raises(UsageError, match="eth0 is wireless"):
        refuse_wireless(link(sys, "eth0"), sys)


def test_a_bridge_with_a_wireless_port_is_warned_of(sys: Path) -> None:
    assert "wlan0, a port of br0, is wireless" in refuse_wireless(link(sys, "br0"), sys)


def test_an_interface_of_another_namespace_with_that_name(sys: Path) -> None:
    other = Link("wlan0", 99, Mac("52:54:00:00:00:01"), 1500, True, True, ())
    assert refuse_wireless(other, sys) == ""
