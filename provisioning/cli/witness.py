"""`seh-provision witness`: cosigns boxes' audit logs, for another party than the coordinator."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import structlog
import typer

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.logging import configure_logging
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, ask

app = typer.Typer(name="witness", help="The witness of boxes' audit logs.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option(help="witness.toml, as `witness init` made it.")]

log = structlog.get_logger()


@app.callback()
def _witness() -> None:
    """The witness of boxes' audit logs."""


@app.command()
def init(
    *,
    directory: Annotated[Path, typer.Option(help="The witness's own directory, on its own party's host.")],
    name: Annotated[str, typer.Option(help="Its name, such as witness.example/1.")],
    address: Annotated[str, typer.Option(help="host:port under which boxes reach it.")],
    root: Annotated[Path, typer.Option(help="Root metadata of the consortium's trust repository, its first version.")],
    registrar: Annotated[str, typer.Option(help="host:port of the registrar.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a witness; the consortium puts its record, witness.json, into consortium.json."""
    from provisioning.authority.opening import read_passphrase  # noqa: PLC0415 - many libraries
    from provisioning.witness.settings import RECORD_NAME, found_witness  # noqa: PLC0415 - the same

    data = read_file(root)
    digest = hashlib.sha256(data).hexdigest()
    passphrase = read_passphrase(passphrase_file) if passphrase_file else ask("passphrase of the new key", twice=True)
    record = found_witness(
        directory,
        name=name,
        address=address,
        root=data,
        root_digest=digest,
        registrar=registrar,
        passphrase=passphrase,
        now=SystemClock().now(),
    )
    typer.echo(f"The consortium's root: {digest}\nCompare it with what the consortium published.")
    typer.echo(f"The witness's key: {record.vkey}\nIts record for the consortium: {directory / RECORD_NAME}")


@app.command()
def run(config: ConfigOption) -> None:
    """Cosign what continues what was cosigned before, until stopped."""
    from provisioning.authority.opening import unattended_secrets  # noqa: PLC0415 - many libraries
    from provisioning.registrar.run import notify, serve  # noqa: PLC0415 - the same
    from provisioning.witness.app import opened_witness, witness_app  # noqa: PLC0415 - the same
    from provisioning.witness.settings import load_witness_settings, open_key  # noqa: PLC0415 - the same

    configure_logging()
    settings = load_witness_settings(config)
    key = open_key(settings.key, unattended_secrets(settings.passphrase_file, os.environ)("passphrase"))
    clock = SystemClock()

    def ready() -> None:
        log.info("witness_ready", listen=settings.listen, name=settings.name)
        notify("READY=1")

    with opened_witness(settings, key, clock) as witness:
        serve(witness_app(witness, clock), settings, ready=ready)
    log.info("witness_stopped")


@app.command()
def forget(
    *,
    config: ConfigOption,
    site: Annotated[str, typer.Option(help="The hospital.")],
    node: Annotated[str, typer.Option(help="The box.")],
) -> None:
    """Forget the logs of a box that lost its disk for good; the witness must be stopped. Ask the hospital first."""
    from provisioning.witness.settings import load_witness_settings  # noqa: PLC0415 - many libraries
    from provisioning.witness.store import WitnessStore  # noqa: PLC0415 - the same

    with WitnessStore.open(load_witness_settings(config).state) as store:
        count = store.forget(site, node)
    if not count:
        raise OperatorError(
            "witness.no_such_log",
            f"This witness knows no audit log of the box {node} of {site}, so nothing was forgotten.",
            next_step="Compare hospital and box with `seh-provision consortium status`.",
        )
    typer.echo(f"{count} audit logs of {node} of {site} are forgotten; its next one is taken as its first.")
