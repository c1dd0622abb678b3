"""Groups of commands: their listing has whole sentences, and a mistake in the words is one line."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any

import click


class _OneLine(click.ClickException):
    """What is wrong with the command line, as every other error of ``pxed`` is said."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        said = " ".join(error.format_message().split())
        of = f" See {error.ctx.command_path} --help" if error.ctx is not None else ""
        raise _OneLine(f"pxed: {said}{of}") from None


class Commands(click.Group):
    """A group that says all of each command's first sentence."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _in_one_line():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(1000)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
