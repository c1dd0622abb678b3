"""The configuration: what is accepted; every refusal names file, key, value and what is allowed."""

from pathlib import Path

import pytest

from pxed import config
from pxed.errors import UsageError

FULL = """
interface = "eth0"
state_dir = "/srv/pxed"
[dhcp]
mode = "all"
range = "10.77.0.50-10.77.0.250"
lease = "10m"
[midlayer]
size = "512M"
durability = "writeback"
[class.x86]
shelf = 20
image = "lab@2026.11"
[client."52:54:00:00:00:01"]
name = "seat-01"
"""


def test_every_key_of_the_design_is_read() -> None:
    got = config.parse(FULL)
    assert (got.interface, got.state_dir) == ("eth0", Path("/srv/pxed"))
    assert (got.dhcp.mode, str(got.dhcp.range), got.dhcp.lease) == (
        "all",
        "10.77.0.50-10.77.0.250",
        600,
    )
    assert (got.midlayer.size, got.midlayer.durability) == (512 << 20, "writeback")
    assert (got.classes["x86"].shelf, got.classes["x86"].image) == (20, "lab@2026.11")
    assert [c.name for c in got.clients.values()] == ["seat-01"]


def test_the_interface_alone_is_enough() -> None:
    got = config.parse('interface = "eth0"')
    assert (got.dhcp.mode, got.midlayer.size, got.classes["x86"].shelf) == (
        "pxe-only",
        512 << 20,
        16,
    )


def test_the_pi_has_its_own_shelf_by_default() -> None:
    got = config.parse('interface = "eth0"\n[class.x86]\n[class.rpi]')
    assert got.classes["rpi"].shelf == 17


def test_the_command_line_interface_wins() -> None:
    assert config.parse('interface = "eth0"', interface="eth1").interface == "eth1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["interface", "missing"]),
        ("interface = 3", ["interface = 3", "text"]),
        ("interfaces = 'a'", ["interfaces", "did you mean 'interface'"]),
        ("[dhcp]\nmode = 'both'", ["[dhcp] mode = 'both'", "pxe-only, all, proxy"]),
        ("[dhcp]\nmodes = 'all'", ["[dhcp] modes", "did you mean 'mode'"]),
        ("[dhcp]\nlease = 10", ["[dhcp] lease = 10", '"10m"']),
        ("[dhcp]\nlease = '5s'", ["[dhcp] lease", '"60s"']),
        ("[dhcp]\nrange = '10.0.0.9-10.0.0.2'", ["range", "lower address"]),
        ("[dhcp]\nrange = 'all of them'", ["range", "10.77.0.50-10.77.0.250"]),
        ("[midlayer]\nsize = 'big'", ["[midlayer] size = 'big'", '"512M"']),
        ("[midlayer]\nsize = '4K'", ["size", '"8M"']),
        ("[midlayer]\nsize = 536870913", ["size", "4 KiB"]),
        ("[class.x86]\nshelf = 4095", ["shelf = 4095", "4094"]),
        ("[class.x86]\nshelf = true", ["shelf = True", "whole number"]),
        ("[class.arm]", ["class.arm", "x86, rpi"]),
        ("[class.x86]\nshelf = 17\n[class.rpi]", ["shelf = 17", "class x86"]),
        ("[client.'nonsense']\nname = 'x'", ["nonsense", "MAC address"]),
        ("state_dir = 'here'", ["state_dir", "absolute"]),
        ("dhcp = 3", ["dhcp", "table"]),
        ("= 3", ["not valid TOML"]),
    ],
)
def test_a_bad_value_names_file_key_and_what_is_allowed(text: str, words: list[str]) -> None:
    interface = None if "interface" in text or not text else "eth0"
    with pytest.raises(UsageError) as caught:
        config.parse(text, "lab.toml", interface=interface)
    message = str(caught.value)
    assert message.startswith("lab.toml: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.load(tmp_path / "none.toml")


def test_a_file_that_is_no_text_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        config.load(tmp_path / "x.toml")
