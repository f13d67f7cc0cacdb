"""`seh-provision`: the commands of a consortium's operator."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import typer

from agent.core.terminal import run_command
from provisioning.cli import coordinator, study

app = typer.Typer(
    name="seh-provision",
    help="The consortium's side of Secur-e-Health.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(study.app)
app.add_typer(coordinator.app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seh-provision {version('secur-e-health')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """The consortium's side of Secur-e-Health."""


def main() -> None:
    """Entry point."""
    sys.exit(run_command(lambda: app(standalone_mode=False)))
