"""`seh-provision registrar`: enrols boxes, and serves the consortium's repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import structlog
import typer

from agent.core.clock import SystemClock
from agent.core.logging import configure_logging

app = typer.Typer(name="registrar", help="The registrar.", no_args_is_help=True)

log = structlog.get_logger()


@app.callback()
def _registrar() -> None:
    """The registrar."""


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="registrar.toml, as `seh-provision consortium init` made it.")],
) -> None:
    """Enrol boxes and serve the repository, until stopped."""
    from provisioning.authority.opening import unattended_secrets  # noqa: PLC0415 - many libraries
    from provisioning.authority.superlink import SuperLinkConnection  # noqa: PLC0415 - the same
    from provisioning.registrar.run import notify, open_keys, opened_registrar, serve  # noqa: PLC0415 - the same
    from provisioning.registrar.settings import load_settings  # noqa: PLC0415 - the same

    configure_logging()
    settings = load_settings(config)
    superlink = settings.superlink
    door = SuperLinkConnection(superlink.home.resolve(), superlink.address, superlink.root_certificates.resolve())
    keys = open_keys(settings, unattended_secrets(settings.keys.passphrase_file, os.environ))

    def ready() -> None:
        log.info("registrar_ready", listen=settings.listen)
        notify("READY=1")

    with opened_registrar(settings, keys, door, SystemClock()) as application:
        serve(application, settings, ready=ready)
    log.info("registrar_stopped")
