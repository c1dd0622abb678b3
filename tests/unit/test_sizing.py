"""What a room needs: the arithmetic, and the command."""

import json

import pytest
from click.testing import CliRunner

from aoe_fast.server import ring_sizes
from aoe_fast.wire import sectors_per_frame
from bench.storm import TRACE
from bench.trace import Kind, load
from pxed.cli import main
from pxed.cli_size import parse_link
from pxed.errors import UsageError
from pxed.sizing import LOADED, READ, Room, measure, sectors_of


def test_a_slow_link_is_what_a_room_waits_for() -> None:
    found = measure(Room(clients=200, link=1e9, loaded=10 << 20, read=10 << 20))
    assert found.limit == "the link"
    # 20 MiB for each, and 60 bytes around each KiB.
    assert found.link_bytes == 200 * (20 << 20) * 1084 // 1024
    assert found.storm_s == found.link_s == pytest.approx(found.link_bytes * 8 / 1e9)
    assert found.requests == 200 * 20480


def test_a_fast_link_leaves_the_cpu_and_workers_divide_it() -> None:
    one, four = (measure(Room(clients=1000, link=100e9, workers=n)) for n in (1, 4))
    assert one.limit == "the CPU"
    assert four.cpu_s == one.cpu_s
    assert four.storm_s < one.storm_s / 3
    assert one.cores > 3


def test_one_client_goes_at_its_own_pace() -> None:
    found = measure(Room(clients=1, link=10e9))
    assert found.limit == "one client's own pace"
    assert found.cores == 2


def test_jumbo_frames_cost_less() -> None:
    small, big = (measure(Room(clients=100, link=10e9, mtu=mtu)) for mtu in (1500, 9000))
    assert big.cpu_s < small.cpu_s
    assert big.link_s < small.link_s


@pytest.mark.parametrize("mtu", [1500, 4131, 4132, 4200, 8227, 8228, 9000])
def test_sectors_in_a_frame_are_what_the_server_offers(mtu: int) -> None:
    assert sectors_of(mtu) == sectors_per_frame(mtu)


@pytest.mark.parametrize(
    ("clients", "workers"), [(1, 1), (200, 1), (1000, 1), (1000, 4), (8000, 1)]
)
def test_the_ring_is_the_servers(clients: int, workers: int) -> None:
    found = measure(Room(clients=clients, link=1e9, workers=workers))
    assert found.ring_frames == ring_sizes(clients, 64, workers)[0]


def test_a_debian_seat_is_the_recorded_one() -> None:
    boot = load(TRACE.with_name("debian.trace"))
    assert 512 * boot.total(Kind.SINGLE) <= LOADED < 1.1 * 512 * boot.total(Kind.SINGLE)
    assert 512 * boot.total(Kind.READ) <= READ < 1.1 * 512 * boot.total(Kind.READ)


def test_more_of_anything_takes_longer() -> None:
    base = measure(Room(clients=100, link=1e9))
    assert measure(Room(clients=101, link=1e9)).storm_s > base.storm_s
    assert measure(Room(clients=100, link=1e9, loaded=100 << 20)).storm_s > base.storm_s
    assert measure(Room(clients=200, link=1e9)).memory > base.memory


@pytest.mark.parametrize(
    ("text", "rate"), [("1G", 1e9), ("2.5G", 2.5e9), ("100M", 1e8), ("10Gbit", 1e10)]
)
def test_links(text: str, rate: float) -> None:
    assert parse_link(text) == rate


@pytest.mark.parametrize("text", ["", "1", "fast", "0G", "-1G", "1T"])
def test_what_is_no_link_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--link"):
        parse_link(text)


def test_the_command_says_it_for_people_and_programs() -> None:
    run = CliRunner()
    said = run.invoke(main, ["size", "--clients", "300", "--link", "10G"])
    assert said.exit_code == 0
    for word in ("storm", "link", "ring", "memory", "cores", "max_clients = 300"):
        assert word in said.output
    found = json.loads(run.invoke(main, ["size", "--clients", "300", "--json"]).output)
    assert found["storm_s"] >= found["link_s"] > 0


@pytest.mark.parametrize(
    "words", [[], ["--clients", "0"], ["--clients", "5", "--link", "x"],
              ["--clients", "5", "--read", "nothing"], ["--clients", "5", "--loaded", "0"]],
)  # fmt: skip
def test_wrong_words_are_a_usage_error(words: list[str]) -> None:
    assert CliRunner().invoke(main, ["size", *words]).exit_code == 2
