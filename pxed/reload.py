"""What differs between two configurations, and what of it a running server can take over. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pxed.config import Config

# Everything else is read when the server starts: sockets, rings and the address plan.
_LIVE = (
    "dhcp.lease", "dhcp.router", "dhcp.dns", "midlayer.", "clients.", "events.", "client.",
)  # fmt: skip
_LIVE_OF_CLASS = ("image", "mode", "ipxe", "secure_boot")


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that was changed; ``live``: a reload can take it over."""

    key: str
    old: str
    new: str
    live: bool

    def __str__(self) -> str:
        restart = "" if self.live else "  (needs a restart)"
        return f"{self.key}: {self.old} -> {self.new}{restart}"


def differences(old: Config, new: Config) -> list[Difference]:
    """Every key whose value is not the same, by its name in the file."""
    before, after = dict(_flat(old)), dict(_flat(new))
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        was, now = before.get(key, "unset"), after.get(key, "unset")
        if was != now:
            found.append(Difference(key, was, now, _live(key)))
    return found


def _flat(config: Config) -> Iterator[tuple[str, str]]:
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name == "classes":
            for name, table in value.items():
                yield from _table(f"class.{name}", table)
        elif each.name == "clients":
            for mac, table in value.items():
                yield from _table(f'client."{mac}"', table)
        elif is_dataclass(value):
            yield from _table("clients" if each.name == "admission" else each.name, value)
        else:
            yield each.name, str(value)


def _table(where: str, table: Any) -> Iterator[tuple[str, str]]:
    for each in fields(table):
        value = getattr(table, each.name)
        if value is None or value == ():
            continue
        if is_dataclass(value):
            yield from _table(f"{where}.{each.name}", value)
            continue
        if isinstance(value, tuple):
            value = ", ".join(str(item) for item in value)
        yield f"{where}.{each.name}", str(value)


def _live(key: str) -> bool:
    if key.startswith("class."):
        of_class = key.split(".")[2:]
        return of_class[0] == "provision" or (len(of_class) == 1 and of_class[0] in _LIVE_OF_CLASS)
    return key.startswith(_LIVE)
