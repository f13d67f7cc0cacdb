"""`seh-provision root`: who may change the consortium itself."""

from __future__ import annotations

from typing import Annotated

import typer
from tuf.api.metadata import Root

from agent.core.errors import OperatorError
from provisioning.authority.roles import RoleKeys
from provisioning.authority.signers import elliptic_key, listed_key
from provisioning.cli.ceremony import DirectoryOption, KeysOption, asked_authority, from_here, tell_outcome
from provisioning.cli.secrets import PassphraseFile

app = typer.Typer(name="root", help="The keys above all others.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """The keys above all others."""


@app.command()
def rotate(
    *,
    directory: DirectoryOption,
    new_key: Annotated[list[str], typer.Option(help="URI of each key that the root is to have.")],
    threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 2,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Give the root other keys: as many of the old and of the new ones as must sign, sign this."""
    with asked_authority(directory, passphrase_file, [*(key or ()), *new_key]) as authority:
        uris = [from_here(uri) for uri in new_key]
        signers = [authority.keyring.open(uri) for uri in uris]
        try:
            keys = RoleKeys(tuple(listed_key(elliptic_key(signer.public_key)) for signer in signers), threshold)
        except ValueError as error:
            raise OperatorError(
                "authority.bad_threshold",
                f"The root cannot have these keys: {error}.",
                next_step="Name more keys with --new-key, or a lower --threshold.",
            ) from error
        pending = authority.ceremony.rotate_root({Root.type: keys})
        for signer, uri in zip(signers, uris, strict=True):
            authority.keyring.remember(signer, uri)
        tell_outcome(authority, pending, f"The root is version {pending.version}; boxes follow by themselves.")
