"""Which clients a word means."""

import pytest

from pxed import orders, selector
from pxed.clients import Clients
from pxed.errors import UsageError
from pxed.mac import Mac
from pxed.seat import Client


def mac(n: int) -> Mac:
    return Mac(f"52:54:00:00:00:{n:02x}")


@pytest.fixture
def clients() -> Clients:
    return Clients(
        [
            Client(mac(1), name="seat-01", groups=["room-a"]),
            Client(mac(2), name="seat-02", groups=["room-a", "canary"]),
            Client(mac(3), name="desk", macs=[mac(0x13)]),
            Client(mac(4)),
        ]
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["52:54:00:00:00:01"], [1]),
        (["525400000013"], [3]),
        (["seat-01"], [1]),
        (["seat-*"], [1, 2]),
        (["SEAT-0?"], [1, 2]),
        (["room-a"], [1, 2]),
        (["@canary"], [2]),
        (["*:13"], [3]),
        (["all"], [4, 3, 1, 2]),
        (["desk", "seat-*", "seat-01"], [3, 1, 2]),
    ],
)
def test_words_mean_clients(clients: Clients, words: list[str], meant: list[int]) -> None:
    assert [client.mac for client in selector.choose(clients, words)] == [mac(n) for n in meant]


@pytest.mark.parametrize("word", ["nobody", "@seat-01", "x*", "52:54:00:00:00:99", "", "*["])
def test_a_word_that_means_nobody_is_an_error(clients: Clients, word: str) -> None:
    with pytest.raises(UsageError):
        selector.choose(clients, [word])


def test_no_word_is_an_error(clients: Clients) -> None:
    with pytest.raises(UsageError, match="no client is named"):
        selector.choose(clients, [])


def test_a_new_mac_can_be_made_known(clients: Clients) -> None:
    (client,) = selector.choose(clients, ["52-54-00-00-00-99"], create=True)
    assert clients.get(mac(0x99)) is client


def test_one_is_one(clients: Clients) -> None:
    assert selector.one(clients, "desk").mac == mac(3)
    with pytest.raises(UsageError, match="2 clients"):
        selector.one(clients, "seat-*")


@pytest.mark.parametrize("name", ["all", "52:54:00:00:00:01", "", "a b", "-x", "@x", "ü", "x" * 64])
def test_names_that_would_be_taken_for_something_else(name: str) -> None:
    with pytest.raises(UsageError):
        selector.check_name(name, "name")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", orders.Order()),
        ("local", orders.Order("local")),
        ("image=lab", orders.Order("diskless", "lab")),
        ("image=lab@2026.11", orders.Order("diskless", "lab@2026.11")),
    ],
)
def test_orders(text: str, order: orders.Order) -> None:
    assert orders.parse(text) == order


@pytest.mark.parametrize("text", ["disk", "image=", "image=../x", "image=lab@", "image=a b"])
def test_bad_orders(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be booted"):
        orders.parse(text)
