"""The configuration: one TOML file, checked whole before anything starts.

Every value has a default but the interface. Unknown keys and bad values raise UsageError with the
file, the key, the value and what is allowed.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from pxed.errors import UsageError
from pxed.mac import Mac, parse_mac

T = TypeVar("T")

CLASSES = ("x86", "rpi")
DEFAULT_SHELF = {"x86": 16, "rpi": 17}
MAX_SHELF = 4094  # Linux discards shelf 4095 (AoE notes, "Frame")

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _path(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def parse_size(value: Any) -> int:
    """Bytes, from a number or a text such as ``512M``; ValueError says what is allowed."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a size such as "512M" or "2G"')
    return int(found[1]) * _SIZES[found[2]]


def parse_midlayer_size(value: Any) -> int:
    size = parse_size(value)
    if size < 8 << 20 or size > 16 << 40:
        raise ValueError('must be a size from "8M" to "16T"')
    if size % 4096:
        # Linux falls back to 512-byte I/O on a device that is no multiple of a page.
        raise ValueError("must be a multiple of 4 KiB")
    return size


def parse_span(value: Any) -> int:
    """Seconds, from a text such as ``10m``; ValueError says what is allowed."""
    found = re.fullmatch(r"(\d+)([smhd])", value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise ValueError('must be a time such as "90s", "10m" or "12h"')
    return int(found[1]) * _SPANS[found[2]]


def _room(value: Any) -> int:
    size = parse_size(value)
    if not 0 <= size <= 1 << 44:
        raise ValueError('must be a size from "0" to "16T"')
    return size


def _lease(value: Any) -> int:
    seconds = parse_span(value)
    if not 60 <= seconds <= 365 * 86400:
        raise ValueError('must be from "60s" to "365d"')
    return seconds


def _date(value: Any) -> str:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    try:
        return date.fromisoformat(_text(value)).isoformat()
    except ValueError:
        raise ValueError("must be a date such as 2027-12-31") from None


def _disk(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9]{0,31}", value):
        raise ValueError("must be only, first, smallest, largest or a name such as nvme0n1")
    return value


def _built(value: Any) -> Any:
    return value  # a table that was checked before


def _address(value: Any) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(_text(value))
    except ValueError as error:
        raise ValueError("must be an IPv4 address such as 10.77.0.1") from error


def _addresses(value: Any) -> tuple[ipaddress.IPv4Address, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_address(each) for each in values)


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses to lease, both ends included."""

    first: ipaddress.IPv4Address
    last: ipaddress.IPv4Address

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def _range(value: Any) -> Range:
    try:
        low, high = (ipaddress.IPv4Address(end.strip()) for end in _text(value).split("-"))
    except ValueError as error:
        raise ValueError("must be a range such as 10.77.0.50-10.77.0.250") from error
    if low > high:
        raise ValueError("must begin with its lower address")
    return Range(low, high)


def _key(parse: Callable[[Any], Any], default: Any = MISSING) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True, slots=True)
class Dhcp:
    mode: str = _key(_choice("pxe-only", "all", "proxy", "auto"), "pxe-only")
    force: bool = _key(_switch, False)
    range: Range | None = _key(_range, None)
    lease: int = _key(_lease, 600)
    router: ipaddress.IPv4Address | None = _key(_address, None)
    dns: tuple[ipaddress.IPv4Address, ...] = _key(_addresses, ())
    router_advertisement: bool = _key(_switch, True)


@dataclass(frozen=True, slots=True)
class Tftp:
    root: Path | None = _key(_path, None)  # None: see pxed.ipxe
    single_port: bool = _key(_switch, False)
    fold_case: bool = _key(_switch, False)
    max_blksize: int = _key(_number(512, 65464), 65464)


@dataclass(frozen=True, slots=True)
class Http:
    port: int = _key(_number(1, 65535), 80)


@dataclass(frozen=True, slots=True)
class Aoe:
    workers: int = _key(_number(1, 64), 1)
    bufcnt: int = _key(_number(2, 1024), 64)
    spin_us: int = _key(_number(0, 10_000), 50)
    max_clients: int = _key(_number(1, 65_536), 256)
    force: bool = _key(_switch, False)


@dataclass(frozen=True, slots=True)
class Midlayer:
    size: int = _key(parse_midlayer_size, 512 << 20)
    durability: str = _key(_choice("durable", "writeback"), "durable")
    keep_free: int = _key(_room, 1 << 30)
    check: bool = _key(_switch, True)
    reclaim: bool = _key(_switch, True)


@dataclass(frozen=True, slots=True)
class Provision:
    """[class.x86.provision]: how the installer acts without a person; without the table it asks."""

    unattended: bool = _key(_switch, True)
    wipe: bool = _key(_switch, False)
    disk: str = _key(_disk, "only")
    supported_until: str | None = _key(_date, None)
    then: str = _key(_choice("local", "default"), "local")


@dataclass(frozen=True, slots=True)
class Class:
    shelf: int = _key(_number(0, MAX_SHELF), 16)
    image: str | None = _key(_text, None)
    mode: str = _key(_choice("diskless", "provision"), "diskless")
    boot: str = _key(_choice("san", "kernel"), "san")
    ipxe: str = _key(_choice("any", "own"), "any")
    secure_boot: bool = _key(_switch, False)
    provision: Provision | None = _key(_built, None)


@dataclass(frozen=True, slots=True)
class Client:
    name: str | None = _key(_text, None)
    image: str | None = _key(_text, None)
    size: int | None = _key(parse_midlayer_size, None)
    max_blksize: int | None = _key(_number(512, 65464), None)
    provision: Mapping[str, Any] | None = _key(_built, None)


@dataclass(frozen=True, slots=True)
class Admission:
    """[clients]: who may boot here."""

    admit: str = _key(_choice("all", "approve"), "all")


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """[control]: ``group`` may use the control socket beside root."""

    group: str | None = _key(_text, None)


@dataclass(frozen=True, slots=True)
class Events:
    """[events]: how many entries of the log are kept."""

    keep: int = _key(_number(1000, 10_000_000), 100_000)


@dataclass(frozen=True, slots=True)
class Security:
    """[security]: whom the server becomes, and how strictly machines are told apart."""

    user: str | None = _key(_text, None)
    bind_boot: bool = _key(_switch, False)
    wire_config: bool = _key(_switch, False)
    wire_reserve: bool = _key(_switch, False)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked."""

    interface: str
    state_dir: Path = Path("/var/lib/pxed")
    dhcp: Dhcp = field(default_factory=Dhcp)
    tftp: Tftp = field(default_factory=Tftp)
    http: Http = field(default_factory=Http)
    aoe: Aoe = field(default_factory=Aoe)
    midlayer: Midlayer = field(default_factory=Midlayer)
    admission: Admission = field(default_factory=Admission)
    control: ControlSocket = field(default_factory=ControlSocket)
    events: Events = field(default_factory=Events)
    security: Security = field(default_factory=Security)
    classes: Mapping[str, Class] = field(default_factory=lambda: {"x86": Class()})
    clients: Mapping[Mac, Client] = field(default_factory=dict)

    @property
    def control_socket(self) -> Path:
        """Where ``pxed status`` and its like find the running server."""
        return self.state_dir / "control.sock"

    @property
    def images_dir(self) -> Path:
        return self.state_dir / "images"

    @property
    def midlayers_dir(self) -> Path:
        return self.state_dir / "config" / "midlayers"


def with_state_dir(config: Config, state_dir: Path) -> Config:
    """The same configuration with another state directory."""
    return replace(config, state_dir=state_dir)


_TOP = {"interface": _text, "state_dir": _path}
_TABLES: dict[str, type] = {"dhcp": Dhcp, "tftp": Tftp, "aoe": Aoe, "midlayer": Midlayer,
                           "http": Http, "clients": Admission, "control": ControlSocket,
                           "events": Events, "security": Security}  # fmt: skip
_FIELDS = {"clients": "admission"}  # where a table's name is not its field's


class _Reader:
    """Turns parsed TOML into dataclasses; knows the file's name for its errors."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, where: str, problem: str) -> UsageError:
        return UsageError(f"{self.source}: {where}: {problem}")

    def unknown(self, where: str, key: str, known: list[str]) -> UsageError:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return self.fail(f"{where}{key}", f"no such key; {hint}")

    def value(self, where: str, parse: Callable[[Any], T], value: Any) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise self.fail(f"{where} = {value!r}", str(error)) from None

    def table(self, where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(where, f"must be a table: write it as [{where}]")
        return value

    def build(self, kind: type[T], where: str, table: Any, **defaults: Any) -> T:
        parsers = {f.name: f.metadata["parse"] for f in fields(kind)}  # type: ignore[arg-type]
        values = dict(defaults)
        for key, value in self.table(where, table).items():
            if key not in parsers:
                raise self.unknown(f"[{where}] ", key, list(parsers))
            values[key] = self.value(f"[{where}] {key}", parsers[key], value)
        return kind(**values)


def parse(text: str, source: str = "pxed.toml", *, interface: str | None = None) -> Config:
    """Check a configuration; ``interface`` (from the command line) wins over the file's.

    UsageError names ``source``, the key, its value and what is allowed.
    """
    reader = _Reader(source)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key in _TOP:
            values[key] = reader.value(key, _TOP[key], value)
        elif key in _TABLES:
            values[_FIELDS.get(key, key)] = reader.build(_TABLES[key], key, value)
        elif key == "class":
            values["classes"] = _classes(reader, reader.table("class", value))
        elif key == "client":
            values["clients"] = _clients(reader, reader.table("client", value))
        else:
            raise reader.unknown("", key, [*_TOP, *_TABLES, "class", "client"])
    if interface is not None:
        values["interface"] = interface
    if "interface" not in values:
        raise UsageError(f'{source}: interface: missing; add a line interface = "eth0", or give -i')
    return Config(**values)


def provision(values: Mapping[str, Any], source: str) -> Provision:
    """A policy from elsewhere than a file; UsageError names ``source`` and what is allowed."""
    return _Reader(source).build(Provision, "provision", dict(values))


def load(path: Path, *, interface: str | None = None) -> Config:
    """Read and check a configuration file; UsageError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{path}: cannot read the configuration: {why}") from None
    return parse(text, str(path), interface=interface)


def _classes(reader: _Reader, table: dict[str, Any]) -> dict[str, Class]:
    classes: dict[str, Class] = {}
    for name, value in table.items():
        if name not in CLASSES:
            raise reader.unknown("class.", name, list(CLASSES))
        where = f"class.{name}"
        value = dict(reader.table(where, value))
        if "provision" in value:
            nested = value["provision"]
            value["provision"] = reader.build(Provision, f"{where}.provision", nested)
        if name == "rpi" and (value.get("mode") == "provision" or "provision" in value):
            raise reader.fail(f"[{where}] provision", "Raspberry Pis are diskless only")
        classes[name] = reader.build(Class, where, value, shelf=DEFAULT_SHELF[name])
    shelves: dict[int, str] = {}
    for name, each in classes.items():
        other = shelves.setdefault(each.shelf, name)
        if other != name:
            raise reader.fail(
                f"[class.{name}] shelf = {each.shelf}", f"class {other} has it already"
            )
    return classes


def _clients(reader: _Reader, table: dict[str, Any]) -> dict[Mac, Client]:
    clients: dict[Mac, Client] = {}
    for text, value in table.items():
        mac = reader.value("[client]", parse_mac, text)
        if mac in clients:
            raise reader.fail(f'[client."{text}"]', "the same machine stands here twice")
        where = f'client."{text}"'
        value = dict(reader.table(where, value))
        if "provision" in value:
            nested = reader.table(f"{where}.provision", value["provision"])
            built = reader.build(Provision, f"{where}.provision", nested)
            # Only what stands here: the rest is as its class has it.
            value["provision"] = {key: getattr(built, key) for key in nested}
        clients[mac] = reader.build(Client, where, value)
    return clients
