"""Counters are in the status before they count anything: 0 is an answer, and no name is none."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from pxed.net import dhcp, http, tftp


@pytest.mark.parametrize("module", [dhcp, http, tftp], ids=["dhcp", "http", "tftp"])
def test_every_counter_is_there_from_the_beginning(module: ModuleType) -> None:
    source = Path(str(module.__file__)).read_text()
    used = set(re.findall(r'counters\["(\w+)"', source))
    used |= set(re.findall(r'counters\["\w+" if \w+ else "(\w+)"', source))
    assert len(used) > 5
    assert used <= set(module.COUNTS)
