"""`seh-agent`: the commands of a hospital's box."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from agent.cli import key, study
from agent.cli.run import run, status
from agent.core.terminal import run_command

app = typer.Typer(
    name="seh-agent",
    help="The agent of a Secur-e-Health box.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(status)
app.add_typer(key.app)
app.add_typer(study.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seh-agent {version('secur-e-health')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """The agent of a Secur-e-Health box."""


def main() -> None:
    """Entry point."""
    sys.exit(run_command(lambda: app(standalone_mode=False)))
