"""`seh-agent study`: the studies on this box."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import OperatorError

app = typer.Typer(name="study", help="Studies on this box.", no_args_is_help=True)


@app.callback()
def _study() -> None:
    """Studies on this box."""


@app.command()
def resume(
    study: Annotated[str, typer.Argument(help="The study's name.")], config: ConfigOption = DEFAULT_CONFIG
) -> None:
    """Let a study run here again that failed on this box's data and was paused; look at the log first."""
    from agent.federation.journal import lift_pause  # noqa: PLC0415 - other commands need not load it
    from agent.federation.secure import journals_of_study  # noqa: PLC0415 - the same
    from agent.federation.studies import load_study  # noqa: PLC0415 - the same

    settings = load_config(config)
    folder = load_study(settings.studies_directory, study)
    directories = journals_of_study(settings.node.state_directory, folder.digest)
    lifted = [lift_pause(directory) for directory in directories]
    if not any(lifted):
        raise OperatorError(
            "cli.not_paused",
            f"The study {study} is not paused on this box.",
            next_step="Nothing to do; `seh-agent status` says how the agent does.",
        )
    typer.echo(f"{study} may run here again, from its next run on.")
