"""`seh-agent run` and `seh-agent status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.config import load_config

DEFAULT_CONFIG = Path("/etc/secur-e-health/agent.toml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")]


def run(config: ConfigOption = DEFAULT_CONFIG) -> int:
    """Run the agent until it is told to stop; the service manager calls this."""
    from agent.service.main import run_agent  # noqa: PLC0415 - other commands need not load the service

    return run_agent(config)


def status(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say how the agent on this box does."""
    from agent.identity.session import utc  # noqa: PLC0415 - other commands need not load the service
    from agent.service.state import load_status, not_running  # noqa: PLC0415 - the same

    current = load_status(load_config(config).node.state_directory)
    if current is None:
        raise not_running()
    typer.echo(f"{current.link}, node {current.node_id or 'not known yet'}, release {current.version}")
    if current.site:
        typer.echo(f"works for {current.site}")
    if current.answering:
        typer.echo(f"working on {current.answering}")
    if current.session_expires_s is not None:
        typer.echo(f"its key vouches for it until {utc(current.session_expires_s)}")
    if current.heard_s is not None:
        typer.echo(f"the registrar heard of it last at {utc(current.heard_s)}")
    if current.session_sentence:
        typer.echo(" ".join((current.session_sentence, current.session_next_step)).rstrip())
    if current.notice:
        typer.echo(current.notice)
    if current.trouble:
        typer.echo(f"{current.sentence}\n{current.next_step}\n[{current.trouble}]")
