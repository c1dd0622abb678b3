"""The exports of a running ``aoe-fast serve``: added, removed and set while clients are served."""

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from aoe_fast.admin import read_settings, write_settings
from aoe_fast.exports import (
    SECTOR,
    ExportSpec,
    parse_address,
    parse_export,
    parse_mac,
    plan_views,
    shown,
)
from aoe_fast.master import unplugged
from aoe_fast.presence import Presence, Seen, seen_in
from aoe_fast.rivals import Lookout, check_neighbours, check_rivals
from aoe_fast.server import Server
from aoe_fast.stats import prometheus, status
from aoe_fast.store import Export
from aoe_fast.target import Target
from aoe_fast.wire import AoeError

_UNSEEN = (0, 0)


@dataclasses.dataclass
class _Held:
    spec: ExportSpec
    export: Export
    file: tuple[int, int] | None  # what was at its path when it was opened
    bytes: int  # how large that was

    def moved(self) -> str:
        """What has become of that file: replaced, removed, or nothing that can be seen."""
        now = _file_at(self.spec.path)
        if now in (self.file, _UNSEEN) or self.file in (None, _UNSEEN):
            return ""
        return "removed" if now is None else "replaced"

    def resized(self) -> str:
        """Whether what is there lacks something that is served, or has more: shorter, longer."""
        if self.moved():
            return ""
        now = _size_at(self.spec.path)
        if now < self.spec.offset + self.export.sectors * SECTOR:
            return "shorter" if now >= 0 else ""
        return "longer" if now > self.bytes >= 0 and self.spec.length is None else ""

    def news(self) -> str:
        """What a person should know of its file, in one line; empty if there is nothing."""
        name = f"{self.spec.shelf}.{self.spec.slot}: {shown(self.spec.path)}"
        if moved := self.moved():
            return f"{name} was {moved}: what was there when it was opened is served on"
        match self.resized():
            case "shorter":
                return (
                    f"{name} is shorter now: {_size_at(self.spec.path)} bytes:"
                    " what is beyond them is an error for its clients"
                )
            case "longer":
                return (
                    f"{name} is longer now: {_size_at(self.spec.path)} bytes, of which"
                    f" {self.export.sectors * SECTOR} are served: when nobody uses it,"
                    " export remove, export add"
                )
        return ""


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file is there; None: there is none. Without leave to look it counts as the same."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        return _UNSEEN
    return found.st_dev, found.st_ino


def _size_at(path: str) -> int:
    """The size in bytes of the file or block device there; -1: it cannot be seen."""
    try:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode):
            return found.st_size
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        with open(f"/sys/dev/block/{number}/size", encoding="ascii") as file:
            return int(file.read()) * SECTOR
    except (OSError, ValueError):
        return -1


class Service:
    """Exports by specification, and the control socket's commands on them. One thread at a time.

    UsageError: what a person got wrong; nothing has changed then.
    """

    def __init__(
        self,
        target: Target,
        interfaces: tuple[str, ...],
        *,
        shared: bool,
        alarm: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``alarm`` is told, from another thread, of what others serve at our addresses later."""
        self.target = target
        self.interfaces = interfaces
        self.shared = shared
        self._held: list[_Held] = []
        self._shown: dict[bytes | None, dict[tuple[int, int], Export]] = {}
        self._started = time.monotonic()
        self._lookout = Lookout(alarm)
        self.presence = Presence("aoe-fast", self._seen, self._look)

    def first(self, specs: list[ExportSpec]) -> None:
        """As ``add``, before there is a server: of two that start at once, one gives way."""
        for interface in self.interfaces:
            self.presence.listen(interface)
        self.add(specs, self.presence.since)

    def add(self, specs: list[ExportSpec], began: int | None = None) -> None:
        """Open and serve all of ``specs``, or none of them."""
        plan_views([held.spec for held in self._held] + specs)
        with contextlib.ExitStack() as undo:
            fresh = [
                _Held(
                    spec,
                    undo.enter_context(spec.open()),
                    _file_at(spec.path),
                    _size_at(spec.path),
                )
                for spec in specs
            ]
            if self.shared:
                for held in fresh:
                    if not held.spec.writable:
                        held.export.share()
            at = _by_address(fresh)
            for interface in self.interfaces:
                check_neighbours(interface, _seen_by(specs), began)
                check_rivals(interface, at)
            before = list(self._held)
            self._held += fresh
            try:
                self._show()
            except BaseException:
                self._held = before
                self._show()
                raise
            undo.pop_all()

    def remove(self, shelf: int, slot: int, macs: list[bytes]) -> int:
        """Stop serving an address, only the exports for ``macs`` if there are any; how many."""
        gone = [
            held
            for held in self._held
            if (held.spec.shelf, held.spec.slot) == (shelf, slot)
            and (not macs or set(macs) & set(held.spec.macs))
        ]
        if not gone:
            raise click.UsageError(
                f"{shelf}.{slot} is not served: `aoe-fast export list` says what is"
            )
        self._held = [held for held in self._held if held not in gone]
        self._show()
        for held in gone:
            held.export.close()
        return len(gone)

    def close(self) -> None:
        """Stop serving everything; every export is synced and closed."""
        held, self._held = self._held, []
        with contextlib.ExitStack() as stack:
            for one in held:
                stack.callback(one.export.close)

    def _seen(self) -> Seen:
        return seen_in(self.target.rows())

    def _look(self) -> None:
        """Whether somebody has come to our addresses since."""
        seen, at = self._seen(), _by_address(list(self._held))
        self._lookout.look(
            *(partial(check_neighbours, name, seen) for name in self.interfaces),
            *(partial(check_rivals, name, at) for name in self.interfaces),
        )

    def _show(self) -> None:
        """Have every view be what the specifications say; those that are so stay as they are."""
        plan = plan_views([held.spec for held in self._held])
        for mac, view in plan.items():
            exports = {at: self._held[n].export for at, n in view.items()}
            if self._shown.get(mac) != exports:
                self.target.set_view(mac, exports)
                self._shown[mac] = exports
        for mac in self._shown.keys() - plan.keys():
            self.target.drop_view(mac)
            del self._shown[mac]

    def says(self) -> str:
        """What the ready line tells about the exports."""
        return "; ".join(held.spec.says(held.export) for held in self._held)

    def warnings(self) -> list[str]:
        """What is allowed and slow, a line for each export that it is true of."""
        told = (held.spec.warns(held.export) for held in self._held)
        return [text for text in told if text is not None]

    # The control socket

    def answer(self, server: Server, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; {"error": text} for what cannot be done."""
        commands: dict[str, Callable[[], dict[str, Any]]] = {
            "stat": lambda: (
                status(server, time.monotonic() - self._started)
                | {"links": list(filter(None, map(unplugged, self.interfaces)))}
                | {"moved": list(filter(None, (held.news() for held in self._held)))}
            ),
            "prometheus": lambda: {
                "text": prometheus(status(server, time.monotonic() - self._started))
            },
            "list": lambda: {"exports": self._listing()},
            "add": lambda: self._add(_text(request, "export")),
            "remove": lambda: self._remove(request),
            "set": lambda: self._set(request),
        }
        command = commands.get(str(request.get("command")))
        if command is None:
            return {"error": f"unknown command {request.get('command')!r}"}
        try:
            return command()
        except (click.UsageError, AoeError) as error:
            return {"error": str(error)}

    def _listing(self) -> list[dict[str, Any]]:
        rows = []
        for held in self._held:
            settings = read_settings(held.export)
            rows.append(
                {
                    "address": f"{held.spec.shelf}.{held.spec.slot}",
                    "path": held.spec.path,
                    "file": held.moved(),
                    "resized": held.resized(),
                    "bytes": held.export.sectors * 512,
                    "writable": held.spec.writable,
                    "durability": held.export.durability if held.spec.writable else None,
                    "macs": [mac.hex(":") for mac in held.spec.macs],
                    "serial": held.export.serial,
                    "config": settings.config.decode("utf-8", "backslashreplace"),
                    "mask": [mac.hex(":") for mac in settings.allowed],
                    "reserved_by": [mac.hex(":") for mac in settings.holders],
                }
            )
        return rows

    def _add(self, text: str) -> dict[str, Any]:
        spec = parse_export(text)
        self.add([spec])
        export = self._held[-1].export
        return {"added": spec.says(export), "warning": spec.warns(export)}

    def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        shelf, slot = parse_address(_text(request, "address"))
        macs = [parse_mac(mac) for mac in _texts(request, "macs") or []]
        return {"removed": self.remove(shelf, slot, macs), "unsaved": self.target.save_state()}

    def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        shelf, slot = parse_address(_text(request, "address"))
        found = [h for h in self._held if (h.spec.shelf, h.spec.slot) == (shelf, slot)]
        if not found:
            raise click.UsageError(f"{shelf}.{slot} is not served")
        config = request.get("config")
        masks, holders = _texts(request, "mask"), _texts(request, "reserved_by")
        for held in found:
            write_settings(
                held.export,
                config=None if config is None else str(config).encode(errors="surrogateescape"),
                allowed=None if masks is None else _machines(masks),
                holders=None if holders is None else _machines(holders),
            )
        return {"set": len(found), "unsaved": self.target.save_state()}


def _by_address(held: list[_Held]) -> dict[tuple[int, int], Export]:
    return {(one.spec.shelf, one.spec.slot): one.export for one in held}


def _seen_by(specs: list[ExportSpec]) -> Seen:
    """The machines that are to see each address."""
    return seen_in((mac, spec.shelf, spec.slot) for spec in specs for mac in (spec.macs or (None,)))


def _machines(texts: list[str]) -> list[bytes]:
    return list(dict.fromkeys(map(parse_mac, texts)))


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise click.UsageError(f"{name}: a text is needed")
    return value


def _texts(request: dict[str, Any], name: str) -> list[str] | None:
    value = request.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise click.UsageError(f"{name}: a list of texts is needed")
    return value
