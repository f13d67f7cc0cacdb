"""`seh-provision`: the commands of a consortium's operator."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from agent.core.terminal import command_line, run_command
from provisioning.cli import coordinator, registrar, study, token

app = command_line("seh-provision", "The consortium's side of Secur-e-Health.")
app.add_typer(study.app)
app.add_typer(coordinator.app)
app.add_typer(token.app)
app.add_typer(registrar.app)


def main() -> None:
    """Entry point."""
    sys.exit(run_command(lambda: app(prog_name="seh-provision", standalone_mode=False)))
