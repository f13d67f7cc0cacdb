"""`seh-provision key`: keys that sign for a hospital or for the consortium, before anybody has hardware for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.errors import OperatorError
from agent.statements.roots import key_id
from agent.trust.records import public_pem
from provisioning.authority.consortium import MIN_PASSPHRASE_CHARACTERS
from provisioning.authority.opening import read_passphrase
from provisioning.authority.signers import create_file_key, elliptic_key, open_signer
from provisioning.cli.secrets import PassphraseFile, ask, interactive

app = typer.Typer(name="key", help="Keys that sign.", no_args_is_help=True)


@app.callback()
def _key() -> None:
    """Keys that sign."""


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; its public half is printed.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a key in an encrypted file. Hardware is better: seh-agent key init."""
    passphrase = ask("new passphrase", twice=True) if passphrase_file is None else read_passphrase(passphrase_file)
    if len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
        raise OperatorError(
            "authority.weak_passphrase",
            f"The passphrase needs at least {MIN_PASSPHRASE_CHARACTERS} characters.",
            next_step="Take four or more words that nobody would guess, and keep them where the key is not.",
        )
    try:
        signer = create_file_key(file, passphrase)
    except OSError as error:
        raise OperatorError(
            "key.not_made",
            f"{file} cannot be made: {error.strerror or error}.",
            next_step="Name a file that is not there yet, in a folder that you may write to.",
        ) from error
    typer.echo(public_pem(elliptic_key(signer.public_key)), nl=False)


@app.command()
def show(
    uri: Annotated[str, typer.Argument(help="file:<path>, piv:..., pkcs11:..., tpm:...")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Print a key's public half, and its fingerprint on standard error."""
    key = elliptic_key(open_signer(uri, interactive(passphrase_file)).public_key)
    typer.echo(public_pem(key), nl=False)
    typer.echo(f"Fingerprint: {key_id(key)}", err=True)
