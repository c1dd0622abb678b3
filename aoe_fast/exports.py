"""Exports as the command line names them: SHELF.SLOT=PATH[,option...], and the views they make."""

import dataclasses
import os
import re

import click

from aoe_fast.store import Export
from aoe_fast.wire import AoeError

SECTOR = 512
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d+)([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
OPTIONS = "ro, rw, mac=MAC, durable, writeback, offset=SIZE, length=SIZE, force"


def parse_address(text: str) -> tuple[int, int]:
    """(shelf, slot) of "16.0"; UsageError for what no Linux client could use."""
    shelf, dot, slot = text.partition(".")
    if not (dot and shelf.isascii() and shelf.isdigit() and slot.isascii() and slot.isdigit()):
        raise click.UsageError(f"{text!r} is not SHELF.SLOT, such as 16.0")
    if int(shelf) == 4095:
        raise click.UsageError(f"{text}: Linux discards shelf 4095: use another")
    if int(shelf) > 65534 or int(slot) > 254:
        raise click.UsageError(f"{text}: shelves go from 0 to 65534, slots from 0 to 254")
    return int(shelf), int(slot)


def parse_size(text: str) -> int:
    """Bytes in "4096", "64K", "1G"; UsageError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.UsageError(f"{text!r} is not a size such as 4096, 64K or 1G")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


@dataclasses.dataclass
class ExportSpec:
    """One ``--export``, parsed; nothing is opened yet."""

    shelf: int
    slot: int
    path: str
    writable: bool = False
    durability: str | None = None
    offset: int = 0
    length: int | None = None
    force: bool = False
    macs: list[bytes] = dataclasses.field(default_factory=list)
    source: str = "--export"
    """Where a person wrote it, for errors: the option, or a file and the line in it."""

    def open(self) -> Export:
        """The export itself; UsageError, as an image that cannot be served is a wrong argument."""
        try:
            return Export(
                self.path,
                writable=self.writable,
                durability=self.durability or "durable",
                offset=self.offset,
                length=self.length,
                force=self.force,
            )
        except AoeError as error:
            raise click.UsageError(f"{self.source} {self.shelf}.{self.slot}: {error}") from None

    def warns(self, export: Export) -> str | None:
        """What is allowed and slow, or None."""
        if export.sectors % 8 == 0:
            return None
        return (
            f"{self.shelf}.{self.slot}: {export.sectors * SECTOR} bytes are no multiple of 4096:"
            " Linux will read and write single sectors there (pad it: truncate -s %4096)"
        )

    def says(self, export: Export) -> str:
        """What the ready line tells about it."""
        mode = f"rw {self.durability or 'durable'}" if self.writable else "ro"
        who = f", for {','.join(mac.hex(':') for mac in self.macs)}" if self.macs else ""
        size = human(export.sectors * SECTOR)
        return f"{self.shelf}.{self.slot}={shown(self.path)} ({size}, {mode}{who})"


def parse_export(text: str, source: str = "--export") -> ExportSpec:
    """SHELF.SLOT=PATH[,option...]; UsageError that names what is wrong, and ``source``.

    Options are taken from the right, so a path may contain commas.
    """
    try:
        return _parse(text, source)
    except click.UsageError as error:
        raise click.UsageError(f"{source} {text!r}: {error}") from None


def _parse(text: str, source: str) -> ExportSpec:
    address, equals, rest = text.partition("=")
    if not equals or not rest:
        raise click.UsageError(f"write SHELF.SLOT=PATH[,{OPTIONS}]")
    shelf, slot = parse_address(address)
    words = rest.split(",")
    options: list[str] = []
    while len(words) > 1 and _is_option(words[-1]):
        options.insert(0, words.pop())
    spec = ExportSpec(shelf, slot, ",".join(words), source=source)
    if len(words) > 1 and not os.path.exists(spec.path):
        raise click.UsageError(f"unknown option {words[-1]!r}: use {OPTIONS}")
    given: set[str] = set()
    for word in options:
        name, _, value = word.partition("=")
        if name in given and name in ("offset", "length"):
            raise click.UsageError(f"{name} twice: give one")
        if name in ("ro", "rw"):
            if given & {"ro", "rw"} - {name}:
                raise click.UsageError("ro or rw, not both")
            spec.writable = name == "rw"
        elif name in ("durable", "writeback"):
            if spec.durability not in (None, name):
                raise click.UsageError("durable or writeback, not both")
            spec.durability = name
        elif name == "force":
            spec.force = True
        elif name == "offset":
            spec.offset = parse_size(value)
        elif name == "length":
            spec.length = parse_size(value)
        else:
            spec.macs.append(parse_mac(value or name))
        given.add(name)
    if spec.durability and not spec.writable:
        raise click.UsageError(f"{spec.durability} is for writes: add rw")
    return spec


def _is_option(word: str) -> bool:
    name, equals, _ = word.partition("=")
    if equals:
        return name in ("mac", "offset", "length")
    return name in ("ro", "rw", "durable", "writeback", "force") or bool(_MAC.fullmatch(name))


def parse_mac(text: str) -> bytes:
    """The 6 bytes of one machine's MAC; UsageError otherwise."""
    if not _MAC.fullmatch(text):
        raise click.UsageError(f"{text!r} is not a MAC like 52:54:00:00:00:01")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1:
        raise click.UsageError(f"{text} is a group address, not a machine's")
    return mac


def plan_views(specs: list[ExportSpec]) -> dict[bytes | None, dict[tuple[int, int], int]]:
    """{MAC or None: {address: index in ``specs``}}. UsageError: one address twice in a view.

    Exports without a MAC are everybody's: in the default view and in every named MAC's.
    """
    # Each specification is looked at once: there may be thousands, each for a machine of its own.
    everybody: dict[tuple[int, int], int] = {}
    own: dict[bytes, dict[tuple[int, int], int]] = {}
    for number, spec in enumerate(specs):
        at = spec.shelf, spec.slot
        for mac in dict.fromkeys(spec.macs) if spec.macs else (None,):
            view = everybody if mac is None else own.setdefault(mac, {})
            if at in view:
                raise _twice(spec, mac)
            view[at] = number
    views: dict[bytes | None, dict[tuple[int, int], int]] = {None: everybody}
    for mac, view in own.items():
        for at in everybody.keys() & view.keys():
            raise _twice(specs[max(everybody[at], view[at])], mac)
        views[mac] = everybody | view
    return views


def _twice(spec: ExportSpec, mac: bytes | None) -> click.UsageError:
    who = mac.hex(":") if mac else "everybody"
    return click.UsageError(
        f"{spec.source} {spec.shelf}.{spec.slot} twice for {who}: give each its own address"
    )


def read_list(path: str) -> list[ExportSpec]:
    """The exports that a file names, one in a line; a line that begins with # is a comment.

    UsageError names the file, and the line that is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise click.UsageError(f"--exports {path}: {error.strerror}: check the path") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"--exports {path}: is not a text in UTF-8") from None
    return [
        parse_export(line, f"--exports {path}, line {number}:")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]


def shown(text: str) -> str:
    """Words of another machine, a file's name, on a terminal: no control character counts."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def human(size: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
