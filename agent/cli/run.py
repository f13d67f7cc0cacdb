"""`seh-agent run` and `seh-agent status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.config import load_config
from agent.core.errors import OperatorError

DEFAULT_CONFIG = Path("/etc/secur-e-health/agent.toml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")]


def run(config: ConfigOption = DEFAULT_CONFIG) -> int:
    """Run the agent until it is told to stop; the service manager calls this."""
    from agent.service.main import run_agent  # noqa: PLC0415 - other commands need not load the service

    return run_agent(config)


def status(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say how the agent on this box does."""
    from agent.service.state import load_status  # noqa: PLC0415 - other commands need not load the service

    current = load_status(load_config(config).node.state_directory)
    if current is None:
        raise OperatorError(
            "cli.not_running",
            "No agent runs on this box.",
            next_step="Start it: `seh-agent run`, or let your service manager do so.",
        )
    typer.echo(f"{current.link}, node {current.node_id or 'not known yet'}")
    if current.answering:
        typer.echo(f"working on {current.answering}")
    if current.trouble:
        typer.echo(f"{current.sentence}\n{current.next_step}\n[{current.trouble}]")
