"""`seh-provision cosigner`: the second organisation's half of every timestamp and snapshot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import structlog
import typer

from agent.core.clock import SystemClock
from agent.core.logging import configure_logging

app = typer.Typer(name="cosigner", help="The second organisation's cosigner.", no_args_is_help=True)

log = structlog.get_logger()


@app.callback()
def _cosigner() -> None:
    """The second organisation's cosigner."""


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="cosigner.toml, as the founding of the consortium made it.")],
) -> None:
    """Cosign what may follow what was signed before, until stopped."""
    from provisioning.authority.cosigner import Cosigner  # noqa: PLC0415 - many libraries
    from provisioning.authority.cosigner_app import cosigner_app, load_cosigner_settings  # noqa: PLC0415 - the same
    from provisioning.authority.opening import unattended_secrets  # noqa: PLC0415 - the same
    from provisioning.authority.signers import open_signer  # noqa: PLC0415 - the same
    from provisioning.registrar.run import notify, serve  # noqa: PLC0415 - the same

    configure_logging()
    settings = load_cosigner_settings(config)
    secrets = unattended_secrets(settings.passphrase_file, os.environ)
    clock = SystemClock()
    cosigner = Cosigner(settings.state, open_signer(settings.key, secrets, base=config.parent), clock)

    def ready() -> None:
        log.info("cosigner_ready", listen=settings.listen)
        notify("READY=1")

    serve(cosigner_app(cosigner, clock), settings, ready=ready)
    log.info("cosigner_stopped")
