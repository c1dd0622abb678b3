"""Addresses looked at ahead of time, under the loop that serves."""

import asyncio
from ipaddress import IPv4Address

import pytest
import uvloop

from pxed.dhcp.leases import Leases
from pxed.net import lookout as module
from pxed.net.lookout import Lookout


def test_an_offer_in_the_very_turn_that_the_lookout_starts_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_IDLE", 3600.0)  # what is asked for then is not asked for soon
    asked: list[IPv4Address] = []
    all_of_them = asyncio.Event()

    def ask(ip: IPv4Address) -> None:
        asked.append(ip)
        if len(asked) == 11:
            all_of_them.set()

    async def work() -> None:
        leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.60"))
        lookout = Lookout(leases, ask, lambda: True, 0.1)
        lookout.start()
        lookout.used(dry=True)
        await asyncio.wait_for(all_of_them.wait(), 60)
        lookout.close()

    uvloop.run(work())
    assert len(set(asked)) == len(asked) == 11
