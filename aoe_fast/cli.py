"""The ``aoe-fast`` command. Exit status: 0 fine, 1 failed, 2 usage; every error is one line."""

import contextlib
import errno
import functools
import importlib
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

import click

from aoe_fast import AoeError, Server, Target
from aoe_fast.buffers import start_helper
from aoe_fast.control import Control, default_path
from aoe_fast.copies import check_interface, discover, read, write
from aoe_fast.exports import (
    OPTIONS,
    parse_export,
    read_list,
)
from aoe_fast.frames import InitiatorError
from aoe_fast.master import deaf, unplugged
from aoe_fast.notify import Notifier, log_to_stderr, to_journal
from aoe_fast.privileges import Capability, find_user, reduce
from aoe_fast.remote import export, stat
from aoe_fast.service import Service
from aoe_fast.statefile import check_writable

_log = logging.getLogger("aoe_fast")

P = ParamSpec("P")
T = TypeVar("T")


def _not_empty(_ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """As of a variable that is not set: without the option all would go on, with more rights."""
    if value == "":
        raise click.UsageError(f"{option.opts[0]}: is empty: name something, or leave it out")
    return value


# Commands


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pxed", prog_name="aoe-fast")
def cli() -> None:
    """ATA over Ethernet: serve disks, find them, copy them."""


for each in (discover, read, write, stat, export):
    cli.add_command(each)


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
    multiple=True,
    metavar="SHELF.SLOT=PATH[,OPTION...]",
    help=f"What to serve (repeatable). Options: {OPTIONS}. Read-only unless rw; with mac= only"
    " these machines see it.",
)
@click.option(
    "--exports",
    "lists",
    multiple=True,
    metavar="FILE",
    help="More of them, one in a line of FILE (repeatable).",
)
@click.option("--workers", default=1, show_default=True, help="Threads for each interface.")
@click.option("--bufcnt", default=64, show_default=True, help="Requests a client may have out.")
@click.option(
    "--spin-us",
    type=click.IntRange(0, 1_000_000),
    default=50,
    show_default=True,
    help="Microseconds to look for the next request before sleeping.",
)
@click.option("--wire-config", is_flag=True, help="Let clients set config strings.")
@click.option("--wire-reserve", is_flag=True, help="Let clients set MAC masks and reservations.")
@click.option(
    "--control",
    metavar="PATH",
    callback=_not_empty,
    help="Control socket. [/run/aoe-fast-IFACE.sock]",
)
@click.option(
    "--state",
    metavar="PATH",
    callback=_not_empty,
    help="Keep config strings, masks, reservations here.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Size the receive rings for so many.",
)
@click.option("--shared", is_flag=True, help="Other servers may have the same read-only images.")
@click.option(
    "--user",
    metavar="NAME",
    callback=_not_empty,
    help="Become this user once everything is open.",
)
def serve(
    interfaces: tuple[str, ...],
    exports: tuple[str, ...],
    lists: tuple[str, ...],
    workers: int,
    bufcnt: int,
    spin_us: int,
    wire_config: bool,
    wire_reserve: bool,
    control: str | None,
    state: str | None,
    clients: int | None,
    shared: bool,
    user: str | None,
) -> None:
    """Serve images until SIGTERM or Ctrl-C.

    Of root's rights only CAP_NET_RAW is kept; the images and the control socket are opened before.
    """
    specs = [*map(parse_export, exports), *chain(*map(read_list, lists))]
    if not specs:
        raise click.UsageError("nothing to serve: give --export SHELF.SLOT=PATH, or --exports FILE")
    _raise_file_limit()
    names = tuple(dict.fromkeys(check_interface(name) for name in interfaces))
    try:
        target = Target(
            bufcnt=bufcnt, wire_config=wire_config, wire_reserve=wire_reserve, state=state
        )
        server = Server(target, names, workers=workers, spin_us=spin_us, max_clients=clients)
    except AoeError as error:
        raise click.UsageError(str(error)) from None
    service = Service(target, names, shared=shared, alarm=_log.error)
    notifier = Notifier()
    _log_to_stderr()
    with contextlib.ExitStack() as stack:
        wake = stack.enter_context(_signals())
        stack.callback(service.close)
        stack.callback(service.presence.close)
        service.first(specs)
        links = (says(name) for name in names for says in (deaf, unplugged))
        for text in (*filter(None, links), *service.warnings()):
            click.echo(f"aoe-fast: {text}", err=True)
        listener = _control(server, service, control, names[0])
        if listener is not None:
            stack.callback(listener.close)
        _give_up(user)  # the first thread comes after this
        if state is not None:
            check_writable(state)
        stack.enter_context(server)
        service.presence.start()
        text = f"ready on {', '.join(names)}: {service.says()}"
        click.echo(f"aoe-fast: {text}")
        sys.stdout.flush()
        notifier.ready(text)
        _watch(listener, wake, notifier, server)
        notifier.stopping("answering what has arrived, syncing what was written")
        click.echo("aoe-fast: stopping: answering what has arrived, syncing what was written")
    if unsaved := target.save_state():
        raise AoeError(f"stopped, but {unsaved}: the last config strings, masks and reservations"
                       " are lost: make room, and set them again")  # fmt: skip
    click.echo(f"aoe-fast: stopped: {server.counters['replies'].sum()} answers sent, all synced")


def _give_up(name: str | None) -> None:
    """Keep only what serving needs, for ever; as user ``name`` if there is one."""
    try:
        user = find_user(name) if name else None
        start_helper(user)
        reduce({Capability.NET_RAW}, user)
    except AoeError as error:
        raise click.UsageError(f"--user {name}: {error}") from None


def _raise_file_limit() -> None:
    """As many descriptors as this process may have: each export takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_to_stderr() -> None:
    """Alarms, and whatever else needs a person, as our errors are: one line each."""
    if to_journal(sys.stderr):
        log_to_stderr(logging.WARNING)
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("aoe-fast: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable at SIGTERM, SIGINT or SIGHUP: they do nothing else here.

    SIGHUP is of a terminal that was closed; under nohup(1) it stays ignored.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Written to where the signal is caught. A handler in Python runs when Python goes on, and of a
    # signal between its last look and poll(2) that is when the poll has ended: never.
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _caught) for number in numbers}
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _caught(_number: int, _frame: FrameType | None) -> None:
    """Nothing more: the descriptor has it."""


def _control(server: Server, service: Service, path: str | None, interface: str) -> Control | None:
    """The control socket; where only the default path fails, a warning and None."""
    where = path or default_path(interface)
    try:
        return Control(where, functools.partial(service.answer, server))
    except OSError as error:
        reason = error.strerror or str(error)
        if path:
            raise click.UsageError(f"--control {path}: {reason}: name another path") from None
        click.echo(f"aoe-fast: no control socket, {where}: {reason}", err=True)
        return None


def _watch(listener: Control | None, wake: int, notifier: Notifier, server: Server) -> None:
    """Until a signal: answer the control socket, and the service manager's watchdog."""
    patience = int(notifier.watchdog * 1000) or None
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    if listener is not None:
        poll.register(listener, select.POLLIN)
    while True:
        if server.running:
            notifier.alive()
        ready = [fd for fd, _ in poll.poll(patience)]
        if wake in ready:
            return
        if listener is not None and ready:
            listener.serve_one()


@cli.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure this server beside vblade; only in a checkout. Options: `aoe-fast bench --help`."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "bench" / "aoe.py").is_file():
        raise click.UsageError("the bench is not installed: it runs in a checkout")
    sys.path.insert(0, str(checkout))
    return int(importlib.import_module("bench.aoe").main(list(arguments)) or 0)


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
            text = f"{error.filename or 'failed'}: {error.strerror}"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                text = f"{error.strerror}: raise the limit (ulimit -n, LimitNOFILE=)"
            click.echo(f"aoe-fast: {text}", err=True)
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
