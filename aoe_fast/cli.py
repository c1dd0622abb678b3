"""The ``aoe-fast`` command. Exit status: 0 fine, 1 failed, 2 usage; every error is one line."""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import select
import signal
import socket
import stat as file_modes
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from aoe_fast import AoeError, Export, Server, Target
from aoe_fast.frames import SECTOR, AtaError, Identity, InitiatorError
from aoe_fast.initiator import Initiator

P = ParamSpec("P")
T = TypeVar("T")
View = dict[tuple[int, int], Export]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"(\d+)([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)
_OPTIONS = "ro, rw, mac=MAC, durable, writeback, offset=SIZE, length=SIZE"
_PIECE = 1 << 20


# Words on the command line


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
    macs: list[bytes] = dataclasses.field(default_factory=list)

    def open(self) -> Export:
        """The export itself; UsageError, as an image that cannot be served is a wrong argument."""
        try:
            return Export(
                self.path,
                writable=self.writable,
                durability=self.durability or "durable",
                offset=self.offset,
                length=self.length,
            )
        except AoeError as error:
            raise click.UsageError(f"--export {self.shelf}.{self.slot}: {error}") from None

    def says(self, export: Export) -> str:
        """What the ready line tells about it."""
        mode = f"rw {self.durability or 'durable'}" if self.writable else "ro"
        who = ",".join(mac.hex(":") for mac in self.macs)
        size = human(export.sectors * SECTOR)
        return (
            f"{self.shelf}.{self.slot}={self.path} ({size}, {mode}{', for ' + who if who else ''})"
        )


def parse_export(text: str) -> ExportSpec:
    """SHELF.SLOT=PATH[,option...]; UsageError that names what is wrong.

    Options are taken from the right, so a path may contain commas.
    """
    address, equals, rest = text.partition("=")
    if not equals or not rest:
        raise click.UsageError(f"--export {text!r}: write SHELF.SLOT=PATH[,{_OPTIONS}]")
    shelf, slot = parse_address(address)
    words = rest.split(",")
    options: list[str] = []
    while len(words) > 1 and _is_option(words[-1]):
        options.insert(0, words.pop())
    spec = ExportSpec(shelf, slot, ",".join(words))
    if len(words) > 1 and not os.path.exists(spec.path):
        raise click.UsageError(f"--export {text!r}: unknown option {words[-1]!r}: use {_OPTIONS}")
    given: set[str] = set()
    for word in options:
        name, _, value = word.partition("=")
        if name in ("ro", "rw"):
            if given & {"ro", "rw"} - {name}:
                raise click.UsageError(f"--export {text!r}: ro or rw, not both")
            spec.writable = name == "rw"
        elif name in ("durable", "writeback"):
            if spec.durability not in (None, name):
                raise click.UsageError(f"--export {text!r}: durable or writeback, not both")
            spec.durability = name
        elif name == "offset":
            spec.offset = parse_size(value)
        elif name == "length":
            spec.length = parse_size(value)
        else:
            spec.macs.append(_machine(text, value or name))
        given.add(name)
    if spec.durability and not spec.writable:
        raise click.UsageError(f"--export {text!r}: {spec.durability} is for writes: add rw")
    return spec


def _is_option(word: str) -> bool:
    name, equals, _ = word.partition("=")
    if equals:
        return name in ("mac", "offset", "length")
    return name in ("ro", "rw", "durable", "writeback") or bool(_MAC.fullmatch(name))


def _machine(text: str, value: str) -> bytes:
    if not _MAC.fullmatch(value):
        raise click.UsageError(f"--export {text!r}: {value!r} is not a MAC like 52:54:00:00:00:01")
    mac = bytes.fromhex(value.replace(":", ""))
    if mac[0] & 1:
        raise click.UsageError(f"--export {text!r}: {value} is a group address, not a machine's")
    return mac


def plan_views(specs: list[ExportSpec]) -> dict[bytes | None, dict[tuple[int, int], int]]:
    """{MAC or None: {address: index in ``specs``}}. UsageError: one address twice in a view.

    Exports without a MAC are everybody's: in the default view and in every named MAC's.
    """
    views: dict[bytes | None, dict[tuple[int, int], int]] = {None: {}}
    for mac in [None, *(mac for spec in specs for mac in spec.macs)]:
        view: dict[tuple[int, int], int] = {}
        for number, spec in enumerate(specs):
            if spec.macs and mac not in spec.macs:
                continue
            if (spec.shelf, spec.slot) in view:
                raise click.UsageError(
                    f"--export {spec.shelf}.{spec.slot} twice for"
                    f" {mac.hex(':') if mac else 'everybody'}: give each its own address"
                )
            view[spec.shelf, spec.slot] = number
        views[mac] = view
    return views


def check_interface(name: str) -> str:
    """``name`` if there is such an interface; UsageError otherwise."""
    names = [known for _, known in socket.if_nameindex()]
    if name not in names:
        raise click.UsageError(f"no interface {name!r}: there are {', '.join(names)}")
    return name


def human(size: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


# The control socket


class Control:
    """A unix socket that answers every connection's one line with one line of JSON."""

    def __init__(self, path: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.path = path
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._made: os.stat_result | None = None
        try:
            self._clear()
            old = os.umask(0o077)
            try:
                self._socket.bind(path)
            finally:
                os.umask(old)
            self._made = os.stat(path)
            self._socket.listen(8)
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _clear(self) -> None:
        """Remove a dead server's socket; OSError if the path is in use or something else."""
        try:
            if not file_modes.S_ISSOCK(os.lstat(self.path).st_mode):
                raise OSError(errno.EEXIST, "it exists and is no socket")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(1)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
            else:
                raise OSError(errno.EADDRINUSE, "another aoe-fast serve answers there")

    def fileno(self) -> int:
        return self._socket.fileno()

    def serve_one(self) -> None:
        """Answer one waiting connection; a client that misbehaves only loses its answer."""
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        with peer:
            peer.settimeout(0.5)
            try:
                line = b""
                while not line.endswith(b"\n") and len(line) < 4096:
                    if not (more := peer.recv(4096)):
                        break
                    line += more
                request = json.loads(line)
                answer = self._answer(request if isinstance(request, dict) else {})
            except ValueError:
                answer = {"error": "one line of JSON, please"}
            except OSError:
                return
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        """Remove the socket if it is still the one made here."""
        self._socket.close()
        if self._made is not None:
            with contextlib.suppress(OSError):
                now = os.lstat(self.path)
                if (now.st_dev, now.st_ino) == (self._made.st_dev, self._made.st_ino):
                    os.unlink(self.path)
            self._made = None


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """A running server's answer; ClickException (exit 1) if none runs there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(5)
            peer.connect(path)
            peer.sendall(json.dumps(request).encode() + b"\n")
            with peer.makefile("rb") as file:
                answer = json.loads(file.readline())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no sensible answer"
        raise click.ClickException(
            f"{path}: {reason}: is `aoe-fast serve` running? (--control names its socket)"
        ) from None
    if not isinstance(answer, dict) or "error" in answer:
        raise click.ClickException(f"{path}: the server refuses: {answer}")
    return answer


def status(server: Server, since: float) -> dict[str, Any]:
    """What ``stat`` shows: a row for each binding and for each worker."""
    stats = server.target.stats
    exports = []
    for (mac, shelf, slot), row in sorted(
        server.target.rows().items(), key=lambda item: (item[0][0] or b"", item[0][1:])
    ):
        entry: dict[str, Any] = {"mac": mac.hex(":") if mac else None, "shelf": shelf, "slot": slot}
        names = [name for name in stats.dtype.names or () if not name.endswith("_ns")]
        entry.update({name: int(stats[name][row]) for name in names})
        exports.append(entry)
    counters = server.counters
    workers = [{name: int(row[name]) for name in counters.dtype.names or ()} for row in counters]
    return {
        "pid": os.getpid(),
        "uptime_s": round(time.monotonic() - since, 1),
        "interfaces": list(server.interfaces),
        "exports": exports,
        "workers": workers,
    }


# Commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pxed", prog_name="aoe-fast")
def cli() -> None:
    """ATA over Ethernet: serve disks, find them, copy them."""


interface_option = click.option(
    "-i", "--interface", required=True, metavar="IFACE", help="Ethernet interface."
)


@cli.command()
@click.option(
    "-i",
    "--interface",
    "interfaces",
    required=True,
    multiple=True,
    metavar="IFACE",
    help="Interface to serve on (repeatable).",
)
@click.option(
    "--export",
    "exports",
    required=True,
    multiple=True,
    metavar="SHELF.SLOT=PATH[,OPTION...]",
    help=f"What to serve (repeatable). Options: {_OPTIONS}. Read-only unless rw; with mac= only"
    " these machines see it.",
)
@click.option("--workers", default=1, show_default=True, help="Threads for each interface.")
@click.option("--bufcnt", default=64, show_default=True, help="Requests a client may have out.")
@click.option("--spin-us", default=50, show_default=True, help="Look this long before sleeping.")
@click.option("--wire-config", is_flag=True, help="Let clients set config strings.")
@click.option("--wire-reserve", is_flag=True, help="Let clients set MAC masks and reservations.")
@click.option("--control", metavar="PATH", help="Control socket. [/run/aoe-fast-IFACE.sock]")
def serve(
    interfaces: tuple[str, ...],
    exports: tuple[str, ...],
    workers: int,
    bufcnt: int,
    spin_us: int,
    wire_config: bool,
    wire_reserve: bool,
    control: str | None,
) -> None:
    """Serve images until SIGTERM or Ctrl-C."""
    specs = [parse_export(text) for text in exports]
    plan = plan_views(specs)
    names = tuple(dict.fromkeys(check_interface(name) for name in interfaces))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(spec.open()) for spec in specs]
        try:
            target = Target(bufcnt=bufcnt, wire_config=wire_config, wire_reserve=wire_reserve)
            server = Server(target, names, workers=workers, spin_us=spin_us)
        except AoeError as error:
            raise click.UsageError(str(error)) from None
        for mac, view in plan.items():
            target.set_view(mac, {address: opened[number] for address, number in view.items()})
        wake = stack.enter_context(_signals())
        start = time.monotonic()
        stack.enter_context(server)
        listener = _control(server, control, names[0], start)
        if listener is not None:
            stack.callback(listener.close)
        says = "; ".join(spec.says(export) for spec, export in zip(specs, opened, strict=True))
        click.echo(f"aoe-fast: ready on {', '.join(names)}: {says}")
        sys.stdout.flush()
        _watch(server, listener, wake)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable at SIGTERM or SIGINT, which do nothing else here."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def caught(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"x")

    before = {number: signal.signal(number, caught) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _control(server: Server, path: str | None, interface: str, start: float) -> Control | None:
    """The control socket; where only the default path fails, a warning and None."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request.get("command") == "stat":
            return status(server, start)
        return {"error": f"unknown command {request.get('command')!r}"}

    where = path or f"/run/aoe-fast-{interface}.sock"
    try:
        return Control(where, answer)
    except OSError as error:
        reason = error.strerror or str(error)
        if path:
            raise click.UsageError(f"--control {path}: {reason}: name another path") from None
        click.echo(f"aoe-fast: no control socket, {where}: {reason}", err=True)
        return None


def _watch(server: Server, listener: Control | None, wake: int) -> None:
    """Until a signal: answer the control socket, and raise the alarm when frames are lost."""
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    if listener is not None:
        poll.register(listener, select.POLLIN)
    told = 0
    while True:
        ready = [fd for fd, _ in poll.poll(1000)]
        if wake in ready:
            return
        if listener is not None and ready:
            listener.serve_one()
        drops = int(server.counters["drops"].sum())
        if drops > told:
            click.echo(f"aoe-fast: {drops - told} frames dropped: add --workers", err=True)
            told = drops


@cli.command()
@interface_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--wait", default=0.5, show_default=True, help="Seconds to listen.")
def discover(interface: str, as_json: bool, wait: float) -> None:
    """List the devices that answer on IFACE."""
    rows: list[dict[str, Any]] = []
    with Initiator(check_interface(interface)) as initiator:
        for device in initiator.discover(wait=wait):
            identity: Identity | None = None
            with contextlib.suppress(InitiatorError):
                identity = initiator.identify(device.shelf, device.slot)
            rows.append(
                {
                    "address": device.address,
                    "mac": device.mac.hex(":"),
                    "bytes": identity.sectors * SECTOR if identity else None,
                    "model": identity.model if identity else None,
                    "serial": identity.serial if identity else None,
                    "bufcnt": device.bufcnt,
                    "scnt": device.scnt,
                    "firmware": device.firmware,
                    "config": device.config.decode("utf-8", "backslashreplace"),
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"aoe-fast: nothing answers on {interface}", err=True)
    for row in rows:
        size = "?" if row["bytes"] is None else human(row["bytes"])
        click.echo(
            f"{row['address']:<9} {row['mac']} {size:>10}  {row['model'] or '?'}"
            f" {row['config']}".rstrip()
        )


def _sectors(option: str, size: int) -> int:
    if size % SECTOR:
        raise click.UsageError(f"{option} {size}: give whole sectors, a multiple of {SECTOR}")
    return size // SECTOR


def _bar(length: int, label: str) -> Any:
    """A progress bar on a terminal, silence elsewhere."""
    return click.progressbar(
        length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    )


offset_option = click.option(
    "--offset", default="0", metavar="SIZE", help="Where on the device to begin. [0]"
)


@cli.command()
@interface_option
@click.argument("address", metavar="SHELF.SLOT")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@offset_option
@click.option("--count", metavar="SIZE", help="How much to copy. [to the end]")
def read(interface: str, address: str, file: Path, offset: str, count: str | None) -> None:
    """Copy a device into FILE, which is removed again if the copy fails and made it."""
    shelf, slot = parse_address(address)
    first = _sectors("--offset", parse_size(offset))
    wanted = None if count is None else _sectors("--count", parse_size(count))
    with Initiator(check_interface(interface)) as initiator:
        size = initiator.identify(shelf, slot).sectors
        many = size - first if wanted is None else wanted
        if first > size or first + many > size:
            raise click.UsageError(f"{address} ends at {size * SECTOR}: copy less")
        existed = file.exists()
        with _opened(file, "wb") as out, contextlib.ExitStack() as stack:
            if not existed:
                undo = stack.enter_context(contextlib.ExitStack())
                undo.callback(file.unlink, missing_ok=True)
            with _bar(many * SECTOR, address) as bar:
                for data in initiator.read_range(shelf, slot, first, many):
                    out.write(data)
                    bar.update(len(data))
            out.flush()
            if not existed:
                undo.pop_all()


@cli.command()
@interface_option
@click.argument("address", metavar="SHELF.SLOT")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@offset_option
def write(interface: str, address: str, file: Path, offset: str) -> None:
    """Copy FILE onto a device, then flush it."""
    shelf, slot = parse_address(address)
    first = _sectors("--offset", parse_size(offset))
    name = check_interface(interface)
    with _opened(file, "rb") as source, Initiator(name) as initiator:
        length = source.seek(0, os.SEEK_END)
        source.seek(0)
        many = _sectors(f"{file}: its size", length)
        size = initiator.identify(shelf, slot).sectors
        if first + many > size:
            raise click.UsageError(
                f"{file}: {length} bytes from {offset} on do not fit {address},"
                f" which has {size * SECTOR}"
            )
        with _bar(length, address) as bar:
            initiator.write_range(
                shelf,
                slot,
                first,
                iter(lambda: source.read(_PIECE), b""),
                progress=lambda done: bar.update(done * SECTOR),
            )
        try:
            initiator.flush(shelf, slot)
        except AtaError:
            click.echo(f"aoe-fast: {address} has no FLUSH: it may still hold data back", err=True)


@contextlib.contextmanager
def _opened(file: Path, mode: str) -> Iterator[Any]:
    try:
        opened = file.open(mode)
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}: check the path") from None
    with opened:
        yield opened


@cli.command()
@click.option("-i", "--interface", metavar="IFACE", help="Interface of the running server.")
@click.option("--control", metavar="PATH", help="Control socket. [/run/aoe-fast-IFACE.sock]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def stat(interface: str | None, control: str | None, as_json: bool, watch: bool) -> None:
    """Show what a running `aoe-fast serve` has done."""
    if control is None:
        if interface is None:
            raise click.UsageError("name the server: -i IFACE or --control PATH")
        control = f"/run/aoe-fast-{interface}.sock"
    while True:
        answer = ask(control, {"command": "stat"})
        if as_json:
            click.echo(json.dumps(answer))
        else:
            _show(answer, clear=watch)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(1)


def _show(answer: dict[str, Any], *, clear: bool) -> None:
    if clear and sys.stdout.isatty():
        click.clear()
    workers = answer["workers"]
    total = {name: sum(worker[name] for worker in workers) for name in workers[0]}
    click.echo(
        f"{', '.join(answer['interfaces'])}: up {answer['uptime_s']:.0f} s,"
        f" {total['frames']} frames, {total['replies']} replies, {total['ignored']} ignored,"
        f" {total['drops']} dropped"
    )
    click.echo(f"{'MAC':<18}{'DEVICE':<10}{'READS':>9}{'':>11}{'WRITES':>9}{'':>11}{'ERRORS':>7}")
    for row in answer["exports"]:
        address = f"{row['shelf']}.{row['slot']}"
        click.echo(
            f"{row['mac'] or 'everybody':<18}{address:<10}"
            f"{row['reads']:>9}{human(row['read_bytes']):>11}"
            f"{row['writes']:>9}{human(row['written_bytes']):>11}{row['errors']:>7}"
        )


def _said(command: Callable[P, T]) -> Callable[P, NoReturn]:
    """Turn whatever goes wrong on purpose into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> NoReturn:
        code = 0
        try:
            result = command(*args, **kwargs)
            code = result if isinstance(result, int) else 0  # --help, --version
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            click.echo(f"aoe-fast: {' '.join(error.format_message().split())}", err=True)
            code = error.exit_code
        except (AoeError, InitiatorError) as error:
            click.echo(f"aoe-fast: {error}", err=True)
            code = 1
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the last flush is quiet
            code = 1
        except OSError as error:
            click.echo(f"aoe-fast: {error.filename or 'failed'}: {error.strerror}", err=True)
            code = 1
        except (click.Abort, KeyboardInterrupt):
            click.echo("aoe-fast: interrupted", err=True)
            code = 130
        sys.exit(code)

    return run


@_said
def main() -> object:
    """Entry point of ``aoe-fast``."""
    return cli(standalone_mode=False)


if __name__ == "__main__":
    main()
