"""How commands speak to a person: a failure in three lines, and an exit status that says whose fault it is."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Annotated, TextIO

import click
import typer

from agent.core.errors import Fault, SecureHealthError
from agent.core.logging import configure_logging

EXIT_STATUS: Mapping[Fault, int] = MappingProxyType(
    {Fault.SOFTWARE: 1, Fault.OPERATOR: 2, Fault.PEER: 3, Fault.HARDWARE: 4, Fault.NETWORK: 5}
)
"""Exit status of a command by fault; 2 is also what a wrong command line gives."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""
WHOSE: Mapping[Fault, str] = MappingProxyType(
    {
        Fault.OPERATOR: "to correct here",
        Fault.PEER: "the other side's fault",
        Fault.HARDWARE: "hardware",
        Fault.NETWORK: "network",
        Fault.SOFTWARE: "a fault of this software",
    }
)
"""How people are told whose fault something is."""
_WIDTH = 100


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(f"{context.find_root().info_name} {version('secur-e-health')}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def command_line(name: str, what: str) -> typer.Typer:
    """The frame of a command line program: help, and `--version`.

    Args:
        name: The program's name.
        what: What it is, in one sentence.
    """
    app = typer.Typer(name=name, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(help=what)(_options)
    return app


def render_error(error: SecureHealthError, *, colour: bool = False) -> str:
    """What a person reads about a failure: what happened, what to do, and where it is documented.

    Args:
        error: The failure.
        colour: Whether the reader's terminal shows colours.
    """
    sentence = textwrap.fill(error.sentence, _WIDTH, initial_indent="Error: ", subsequent_indent="       ")
    step = textwrap.fill(error.next_step, _WIDTH, initial_indent="  Now: ", subsequent_indent="       ")
    source = f"       {error.code} ({WHOSE[error.fault]}), {error.anchor}"
    if colour:
        sentence, source = click.style(sentence, fg="red", bold=True), click.style(source, dim=True)
    return "\n".join((sentence, step, source))


def render_columns(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest entry.

    Args:
        headings: Of the columns.
        rows: As many entries each.
    """
    lines = [tuple(heading.upper() for heading in headings), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def run_command(command: Callable[[], object], *, stream: TextIO | None = None) -> int:
    """Run a command line program; return its exit status.

    Args:
        command: A click program in `standalone_mode=False`, or any callable; an `int` it returns is the status.
        stream: Where failures are shown; standard error by default.
    """
    target = stream or sys.stderr
    configure_logging(level=logging.WARNING)
    try:
        result = command()
    except SecureHealthError as error:
        print(render_error(error, colour=target.isatty()), file=target)
        return EXIT_STATUS[error.fault]
    except click.ClickException as error:
        error.show(file=target)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("Stopped.", file=target)
        return INTERRUPTED
    return result if isinstance(result, int) else 0
