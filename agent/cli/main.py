"""`seh-agent`: the commands of a hospital's box."""

from __future__ import annotations

import sys

from agent.cli import audit, data, key, study, update
from agent.cli.console import console
from agent.cli.doctor import doctor
from agent.cli.enrol import accept_keys, enrol, re_enrol, unenrol
from agent.cli.run import run
from agent.cli.screen import screen
from agent.cli.status import status
from agent.core.terminal import command_line, run_command

app = command_line("seh-agent", "The agent of a Secur-e-Health box.")
app.command()(run)
app.command()(status)
app.command()(doctor)
app.command()(console)
app.command()(screen)
app.command()(enrol)
app.command("re-enrol")(re_enrol)
app.command()(unenrol)
app.command("accept-keys")(accept_keys)
app.add_typer(audit.app)
app.add_typer(data.app)
app.add_typer(key.app)
app.add_typer(study.app)
app.add_typer(update.app)


def main() -> None:
    """Entry point."""
    sys.exit(run_command(lambda: app(prog_name="seh-agent", standalone_mode=False)))
