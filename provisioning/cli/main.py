"""`seh-provision`: the commands of a consortium's operator."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from agent.core.terminal import command_line, run_command
from provisioning.cli import (
    consortium,
    coordinator,
    cosigner,
    fleet,
    key,
    node,
    registrar,
    release,
    repository,
    root,
    site,
    steward,
    study,
    superlink,
    token,
    witness,
)

app = command_line("seh-provision", "The consortium's side of Secur-e-Health.")
for group in (
    consortium,
    site,
    node,
    steward,
    token,
    study,
    key,
    root,
    repository,
    release,
    registrar,
    superlink,
    coordinator,
    cosigner,
    witness,
):
    app.add_typer(group.app)
app.command()(fleet.fleet)


def main() -> None:
    """Entry point."""
    sys.exit(run_command(lambda: app(prog_name="seh-provision", standalone_mode=False)))
