"""What a reload finds changed, and what it may take over."""

import pytest

from pxed.config import Config, parse
from pxed.reload import differences


def config(more: str = "") -> Config:
    return parse(f'interface = "eth0"\n{more}')


def test_the_same_is_no_difference() -> None:
    assert differences(config(), config('[dhcp]\nmode = "pxe-only"')) == []


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ('[dhcp]\nlease = "1h"', "dhcp.lease: 600 -> 3600"),
        ('[dhcp]\nmode = "all"', "dhcp.mode: pxe-only -> all  (needs a restart)"),
        ('[clients]\nadmit = "approve"', "clients.admit: all -> approve"),
        ('[class.x86]\nimage = "lab"', "class.x86.image: unset -> lab"),
        ("[class.x86]\nsecure_boot = true", "class.x86.secure_boot: False -> True"),
        ("[class.x86]\nshelf = 3", "class.x86.shelf: 16 -> 3  (needs a restart)"),
        ("[aoe]\nworkers = 2", "aoe.workers: 1 -> 2  (needs a restart)"),
        ('[control]\ngroup = "lab"', "control.group: unset -> lab  (needs a restart)"),
        ('state_dir = "/srv/x"', "state_dir: /var/lib/pxed -> /srv/x  (needs a restart)"),
        (
            '[client."52:54:00:00:00:01"]\nsize = "1G"',
            'client."52:54:00:00:00:01".size: unset -> 1073741824',
        ),
    ],
)
def test_a_difference_names_key_and_values(more: str, line: str) -> None:
    assert [str(each) for each in differences(config(), config(more))] == [line]


def test_a_value_that_was_taken_away() -> None:
    (found,) = differences(config('[dhcp]\nrouter = "10.77.0.1"'), config())
    assert (found.key, found.old, found.new, found.live) == (
        "dhcp.router",
        "10.77.0.1",
        "unset",
        True,
    )
