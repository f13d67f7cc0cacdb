"""`seh-agent run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = Path("/etc/secur-e-health/agent.toml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")]


def run(config: ConfigOption = DEFAULT_CONFIG) -> int:
    """Run the agent until it is told to stop; the service manager calls this."""
    from agent.service.main import run_agent  # noqa: PLC0415 - other commands need not load the service

    return run_agent(config)
