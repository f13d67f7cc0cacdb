"""`seh-provision repository`: the consortium's trust repository on the registrar's host."""

from __future__ import annotations

import typer

from provisioning.cli.ceremony import DirectoryOption, asked_authority
from provisioning.cli.secrets import PassphraseFile

app = typer.Typer(name="repository", help="The trust repository.", no_args_is_help=True)


@app.callback()
def _repository() -> None:
    """The trust repository."""


@app.command()
def refresh(directory: DirectoryOption, passphrase_file: PassphraseFile = None) -> None:
    """Sign timestamp and snapshot anew; the registrar does so by itself every hour."""
    with asked_authority(directory, passphrase_file, None) as authority:
        state = authority.publisher.refresh_online()
    typer.echo(f"Timestamp {state.timestamp_version} and snapshot {state.snapshot_version} are published.")
