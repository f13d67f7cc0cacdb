"""`seh-agent console`: the pages on which a hospital sees and steers its box."""

from __future__ import annotations

import secrets

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import OperatorError


def console(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Serve the console until it is told to stop; the service manager calls this."""
    settings = load_config(config)
    try:
        from agent.console.app import create_app  # noqa: PLC0415 - optional libraries
        from agent.console.run import serve  # noqa: PLC0415 - the same
    except ImportError as error:
        raise OperatorError(
            "console.not_installed",
            f"The console's libraries are not installed: {error.name} is missing.",
            next_step="Install the extra: pip install 'secur-e-health[console]'.",
        ) from error
    from agent.core.clock import SystemClock  # noqa: PLC0415 - other commands need not load the service
    from agent.service.running_box import RunningBox  # noqa: PLC0415 - the same

    box = RunningBox(settings.node.state_directory)
    app = create_app(box, settings.console, SystemClock(), secrets.token_bytes)
    serve(app, settings.console, ready=lambda: typer.echo(f"The console is at {settings.console.origin}"))
