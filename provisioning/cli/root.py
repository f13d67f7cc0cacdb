"""`seh-provision root`: who may change the consortium itself."""

from __future__ import annotations

from typing import Annotated

import typer
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Timestamp

from agent.core.errors import OperatorError
from provisioning.authority.roles import RoleKeys
from provisioning.authority.signers import elliptic_key, listed_key
from provisioning.cli.ceremony import (
    Authority,
    DirectoryOption,
    KeysOption,
    OnlineKeyOption,
    asked_authority,
    from_here,
    tell_outcome,
    use_online_key,
)
from provisioning.cli.secrets import PassphraseFile
from provisioning.registrar.settings import load_settings

app = typer.Typer(name="root", help="The keys above all others.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """The keys above all others."""


@app.command()
def rotate(
    *,
    directory: DirectoryOption,
    new_key: Annotated[
        list[str] | None, typer.Option(help="URI of each key that the root is to have; left out, it keeps its own.")
    ] = None,
    online_key: OnlineKeyOption = None,
    threshold: Annotated[int, typer.Option(min=1, help="How many of them must sign.")] = 2,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Give the root, or the registrar's host, other keys: enough of the root's old and new ones must sign this."""
    uris = [from_here(uri) for uri in new_key or ()]
    with asked_authority(directory, passphrase_file, [*(key or ()), *uris], online_key) as authority:
        keys: dict[str, RoleKeys] = {}
        if uris:
            keys[Root.type] = _root_keys([authority.keyring.open(uri) for uri in uris], threshold)
        if online_key is not None:
            keys |= _online_keys(authority, authority.keyring.open(from_here(online_key)))
        if not keys:
            raise OperatorError(
                "authority.nothing_to_rotate",
                "No new key was named.",
                next_step="Name --new-key or --online-key; to renew the root's time alone: consortium renew root.",
            )
        pending = authority.ceremony.rotate_root(keys)
        for uri in uris:
            authority.keyring.remember(authority.keyring.open(uri), uri)
        tell_outcome(authority, pending, f"The root is version {pending.version}; boxes follow by themselves.")
        if online_key is not None and pending.is_complete:
            use_online_key(authority.layout, online_key)
            typer.echo("Restart the registrar: it signs with the new online key.")


def _root_keys(signers: list[Signer], threshold: int) -> RoleKeys:
    try:
        return RoleKeys(tuple(listed_key(elliptic_key(signer.public_key)) for signer in signers), threshold)
    except ValueError as error:
        raise OperatorError(
            "authority.bad_threshold",
            f"The root cannot have these keys: {error}.",
            next_step="Name more keys with --new-key, or a lower --threshold.",
        ) from error


def _online_keys(authority: Authority, new: Signer) -> dict[str, RoleKeys]:
    """Timestamp and snapshot with `new` in the place of the key that this host had so far."""
    settings = load_settings(authority.layout.registrar_settings)
    root = Metadata[Root].from_bytes(authority.publisher.load().roots[-1]).signed
    old = authority.keyring.open(settings.keys.online).public_key.keyid
    kept = tuple(
        listed_key(elliptic_key(root.get_key(keyid))) for keyid in root.roles[Timestamp.type].keyids if keyid != old
    )
    keys = RoleKeys((listed_key(elliptic_key(new.public_key)), *kept), root.roles[Timestamp.type].threshold)
    return dict.fromkeys((Timestamp.type, Snapshot.type), keys)
