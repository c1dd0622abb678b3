"""Every protocol over a wire that loses, doubles, reorders, delays, damages and cuts, by seed."""

import random
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from aoe_fast import Export, Target
from pxed.dhcp.bootplan import BootPlan
from pxed.dhcp.codec import DhcpError, Message, Op, Opt, Type, decode, encode
from pxed.dhcp.leases import Leases
from pxed.dhcp.policy import Policy
from pxed.dhcp.replies import Mode, Settings
from pxed.mac import Mac
from pxed.tftp import codec as tftp
from pxed.tftp.session import Bytes, Peer
from tests.aoe_frames import READ_EXT, SERVER, WRITE_EXT, Reply, ata
from tests.fault.wire import Fault, Wire
from tests.tftp_engines import ENGINES

BAD = {
    "drop": Fault(drop=0.2),
    "duplicate": Fault(duplicate=0.3),
    "reorder": Fault(reorder=0.3),
    "delay": Fault(delay=0.05),
    "damage": Fault(corrupt=0.2),
    "all": Fault(drop=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1, delay=0.02),
}
SEEDS = range(3)
EVERY = [(name, seed) for name in BAD for seed in SEEDS]
SECTORS = 16


def pair(fault: Fault, seed: int) -> tuple[Wire, Wire]:
    return Wire(fault, 2 * seed), Wire(fault, 2 * seed + 1)


def test_a_wire_is_as_its_seed_says() -> None:
    outs = []
    for seed in (1, 1, 2):
        wire = Wire(BAD["all"], seed)
        for number in range(200):
            wire.send(number.to_bytes(60, "big"), number * 1e-3)
        outs.append(wire.receive(10))
    assert outs[0] == outs[1] != outs[2]
    assert len(outs[0]) != 200


def test_a_wire_cuts_what_is_too_long() -> None:
    wire = Wire(Fault(mtu=1514), 1)
    wire.send(bytes(1515), 0)
    wire.send(bytes(1514), 0)
    assert [len(frame) for frame in wire.receive(1)] == [1514]


# AoE


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTORS * 512))
    with Export(path, writable=True, durability="writeback") as export:
        target = Target()
        target.set_view(None, {(16, 3): export})
        yield target


def content(value: int) -> bytes:
    return value.to_bytes(8, "big") * 64


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_aoe_reads_what_was_last_acknowledged(target: Target, name: str, seed: int) -> None:
    """One request at a time for each sector, repeated with a new tag like Linux does."""
    there, back = pair(BAD[name], seed)
    chance = random.Random(seed)
    in_order = name in ("drop", "damage")
    holds = [{0} for _ in range(SECTORS)]  # what a sector may hold
    out: dict[int, tuple[int, int, float, set[int]]] = {}  # sector: value or -1, tag, due, tags
    now, tag, done = 0.0, 0, 0
    while done < 400:
        for sector in range(SECTORS):
            value, _, due, tags = out.get(sector, (0, 0, -1.0, set[int]()))
            if sector in out and now < due:
                continue
            if sector not in out:
                value = chance.choice((-1, 1000 + tag))
            tag += 1
            data = content(value) if value >= 0 else b""
            opcode = WRITE_EXT if value >= 0 else READ_EXT
            there.send(ata(opcode, sector, 1, data=data, tag=tag), now)
            if value >= 0:
                holds[sector].add(value)
            out[sector] = (value, tag, now + 0.2, tags | {tag})
        now = min(there.next_at, back.next_at, min(each[2] for each in out.values()))
        for frame in there.receive(now):
            for raw in target.handle(frame, SERVER):
                back.send(raw, now)
        for raw in back.receive(now):
            reply = Reply(raw)
            for sector, (value, _, _, tags) in list(out.items()):
                if reply.tag in tags:
                    assert reply.status == 0x40
                    del out[sector]
                    done += 1
                    if value < 0:
                        got = int.from_bytes(reply.data[:8], "big")
                        assert reply.data == content(got), "a torn sector"
                        assert got in holds[sector]
                    elif in_order:
                        holds[sector] = {value}
                    # Else a copy of an older write may still be under way and come late: AoE has
                    # no defence against that, so an old value stays possible.
    assert there.counts["sent"] >= 400


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_that_no_checksum_sees_harms_nobody_else(target: Target, seed: int) -> None:
    """Whatever bit is wrong: a well-formed answer or silence, and only to who asked."""
    wire = Wire(Fault(corrupt=1.0, checked=False), seed)
    for number in range(3000):
        wire.send(ata(random.Random(number).choice((READ_EXT, WRITE_EXT)), number % SECTORS, 1,
                      data=bytes(512), tag=number), 0.0)  # fmt: skip
    for frame in wire.receive(1):
        for raw in target.handle(frame, SERVER):
            assert len(raw) >= 60
            assert raw[:6] == frame[6:12]
            assert raw[20:24] == frame[20:24]


def test_a_black_hole_for_long_frames_loses_only_those(target: Target) -> None:
    back = Wire(Fault(mtu=600), 1)
    for count in (1, 2):
        for raw in target.handle(ata(READ_EXT, 0, count, tag=count), SERVER):
            back.send(raw, 0)
    assert [Reply(raw).tag for raw in back.receive(1)] == [1]


# TFTP


@pytest.mark.parametrize(("name", "seed"), EVERY)
@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("engine", ENGINES)
def test_tftp_brings_the_whole_file(name: str, seed: int, window: int, engine: str) -> None:
    fault = BAD[name]
    there, back = pair(fault, seed)
    content = random.Random(seed).randbytes(40_000)
    options = {"blksize": "1024", "windowsize": str(window)}
    request = tftp.Request("f", options=options)
    server = ENGINES[engine](request, Bytes(content), Peer("10.77.0.9"))
    now = 0.0
    for packet in server.start(now, now):
        back.send(packet, now)
    got, block, asked, in_window = b"", 0, 0.0, 0
    complete = False
    while not server.done and now < 600:
        now = min(there.next_at, back.next_at, server.deadline, asked + 2)
        for packet in there.receive(now):
            for answer in server.receive(packet, now, now):
                back.send(answer, now)
        for raw in back.receive(now):
            came = tftp.decode(raw)
            if isinstance(came, tftp.Oack):
                there.send(tftp.encode(tftp.Ack(0)), now)
                asked = now
            elif isinstance(came, tftp.Data):
                if came.block == block + 1 and not complete:
                    block, in_window = block + 1, in_window + 1
                    got += came.payload
                    complete = len(came.payload) < 1024
                    if complete or in_window == window:
                        in_window = 0
                        there.send(tftp.encode(tftp.Ack(block)), now)
                        asked = now
                elif came.block > block + 1 or complete:
                    in_window = 0
                    there.send(tftp.encode(tftp.Ack(block)), now)
                    asked = now
        if now >= asked + 2:
            there.send(tftp.encode(tftp.Ack(block)), now)
            asked = now
        if now >= server.deadline:
            for answer in server.expire(now, now):
                back.send(answer, now)
    assert got == content


# DHCP


def plan(*_: object) -> BootPlan:
    return BootPlan("undionly.kpxe", "aoe:e16.0", "boot.ipxe", "http://10.77.0.1/snponly.efi")


@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_dhcp_gives_each_machine_one_address_of_its_own(name: str, seed: int) -> None:
    there, back = pair(BAD[name], seed)
    leases = Leases(IPv4Address("10.77.0.50"), IPv4Address("10.77.0.99"))
    policy = Policy(Settings(Mode.PXE_ONLY, IPv4Address("10.77.0.1"), 24), leases, plan)
    macs = [Mac(f"52:54:00:00:00:{number:02x}") for number in range(20)]
    offered: dict[Mac, IPv4Address] = {}
    given: dict[Mac, set[IPv4Address]] = {mac: set() for mac in macs}
    due = dict.fromkeys(macs, 0.0)

    def say(mac: Mac, now: float) -> None:
        options = {int(Opt.VENDOR_CLASS): b"PXEClient:Arch:00000:UNDI:002001",
                   int(Opt.ARCH): b"\0\0"}  # fmt: skip
        if mac in offered:
            options |= {int(Opt.TYPE): bytes((Type.REQUEST,)),
                        int(Opt.SERVER_ID): IPv4Address("10.77.0.1").packed,
                        int(Opt.REQUESTED_IP): offered[mac].packed}  # fmt: skip
        else:
            options |= {int(Opt.TYPE): bytes((Type.DISCOVER,))}
        xid = int(mac.replace(":", ""), 16) & 0xFFFFFFFF
        there.send(encode(Message(op=Op.REQUEST, xid=xid, chaddr=mac, options=options)), now)
        due[mac] = now + 1

    now = 0.0
    while not all(given.values()) and now < 120:
        for mac in macs:
            if now >= due[mac] and not given[mac]:
                say(mac, now)
        waiting = [due[mac] for mac in macs if not given[mac]]
        now = min([there.next_at, back.next_at, *waiting])
        for data in there.receive(now):
            outcome = policy.handle(data, now)
            for reply in outcome.replies:
                back.send(reply.message, now)
        for data in back.receive(now):
            try:
                message = decode(data)
            except DhcpError:
                continue
            kind = Type(message.options[Opt.TYPE][0])
            if kind is Type.OFFER and message.chaddr not in offered:
                offered[message.chaddr] = message.yiaddr
                due[message.chaddr] = now
            elif kind is Type.ACK:
                given[message.chaddr].add(message.yiaddr)
    assert all(len(each) == 1 for each in given.values())
    assert len({ip for each in given.values() for ip in each}) == len(macs)
