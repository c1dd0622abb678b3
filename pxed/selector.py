"""Which clients are meant: a MAC address, a name, a group, or a pattern of any of them. Pure.

``all`` is everybody; ``@GROUP`` only ever a group. A word that is exactly a MAC, a name or a group
means that, in this order; one with ``*``, ``?`` or ``[`` is a pattern over names and MACs.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from pxed.clients import Clients
from pxed.errors import UsageError
from pxed.mac import Mac, parse_mac
from pxed.seat import Client

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}", re.ASCII)


def choose(clients: Clients, words: Sequence[str], *, create: bool = False) -> list[Client]:
    """The clients that any of ``words`` means, each once, sorted by name and MAC.

    UsageError for a word that means nobody; with ``create`` a MAC that was never heard is made
    known instead.
    """
    if not words:
        raise UsageError("no client is named: give a MAC, a name, @GROUP, a pattern or all")
    found: dict[Mac, Client] = {}
    for word in words:
        for client in _meant(clients, word.strip(), create):
            found[client.mac] = client
    return sorted(found.values(), key=lambda client: (client.name, client.mac))


def one(clients: Clients, word: str) -> Client:
    """The only client that ``word`` means; UsageError if it means nobody or several."""
    found = choose(clients, [word])
    if len(found) > 1:
        raise UsageError(f"{word!r} means {len(found)} clients: name one of them")
    return found[0]


def check_name(text: str, what: str) -> str:
    """``text`` if it can name a client or a group without being taken for something else."""
    if not _NAME.fullmatch(text) or text == "all" or _mac(text) is not None:
        raise UsageError(
            f"{text!r} cannot be a {what}: it must be up to 63 letters, digits and ._- "
            "and neither 'all' nor a MAC address"
        )
    return text


def _meant(clients: Clients, word: str, create: bool) -> list[Client]:
    mac = _mac(word)
    if mac is not None:
        client = clients.add(mac) if create else clients.get(mac)
        if client is None:
            raise UsageError(f"no client {mac} was ever seen")
        return [client]
    if word == "all":
        return list(clients)
    group = word.removeprefix("@")
    by_group = [client for client in clients if group in client.groups]
    if word and word == group:
        named = [client for client in clients if client.name == word]
        if named:
            return named
        if not by_group and any(sign in word for sign in "*?["):
            by_group = [client for client in clients if _fits(client, word)]
    if not by_group:
        raise UsageError(f"{word!r} is no client's MAC, name or group, and no pattern fits one")
    return by_group


def _fits(client: Client, pattern: str) -> bool:
    texts = (client.name, *client.all_macs)
    return any(fnmatchcase(text.lower(), pattern.lower()) for text in texts if text)


def _mac(text: str) -> Mac | None:
    try:
        return parse_mac(text)
    except ValueError:
        return None
