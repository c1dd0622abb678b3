"""Addresses looked at ahead of time, under the loop that serves."""

import asyncio
from ipaddress import IPv4Address

import uvloop

from pxed.dhcp.leases import Leases
from pxed.net.lookout import Lookout


def test_an_offer_in_the_very_turn_that_the_lookout_starts_in() -> None:
    asked: list[IPv4Address] = []

    async def work() -> None:
        leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.60"))
        lookout = Lookout(leases, asked.append, lambda: True, 0.1)
        lookout.start()
        lookout.used(dry=True)
        await asyncio.sleep(0.05)
        lookout.close()

    uvloop.run(work())
    assert len(asked) == 11
