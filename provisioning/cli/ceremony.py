"""What commands that change the consortium share: its directory, its keys, and what they say of a change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import Metadata, Root, Targets

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from agent.statements.roots import key_id
from agent.trust.records import parse_public_pem
from provisioning.authority.ceremony import Ceremony, PendingChange
from provisioning.authority.keyring import Keyring
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.opening import open_online_key, opened_publisher
from provisioning.authority.publisher import Publisher
from provisioning.authority.roles import RoleKeys
from provisioning.authority.signers import Secrets, elliptic_key, listed_key
from provisioning.cli.secrets import interactive
from provisioning.registrar.settings import load_settings

DirectoryOption = Annotated[Path, typer.Option("--directory", "-d", help="The authority's directory.")]
OnlineKeyOption = Annotated[
    str | None, typer.Option(help="A new online key for the registrar's host, in place of the one in its settings.")
]
KeysOption = Annotated[
    list[str] | None,
    typer.Option("--key", help="A further key to sign with: file:<path>, piv:..., pkcs11:..., tpm:..."),
]


@dataclass(frozen=True, slots=True)
class Authority:
    """An opened authority.

    Args:
        layout: Its directory.
        keyring: Its keys.
        publisher: Writes its repository.
        ceremony: Makes changes with offline keys.
    """

    layout: AuthorityLayout
    keyring: Keyring
    publisher: Publisher
    ceremony: Ceremony


@contextmanager
def opened_authority(
    directory: Path, secrets: Secrets, keys: list[str] | None = None, online_key: str | None = None
) -> Iterator[Authority]:
    """Open the authority in `directory`.

    Args:
        directory: The authority's.
        secrets: Asked for passphrases and PINs.
        keys: URIs of further keys, as seen from here.
        online_key: URI of the online key to publish with; the one of the settings where left out.

    Raises:
        OperatorError: It is not founded yet, or its settings or keys cannot be used.
    """
    layout, clock = AuthorityLayout(directory), SystemClock()
    settings = load_settings(layout.registrar_settings)
    keyring = Keyring(layout, secrets, [from_here(uri) for uri in keys or ()])
    online = open_online_key(settings, secrets) if online_key is None else keyring.open(from_here(online_key))
    with opened_publisher(settings, online, clock) as publisher:
        yield Authority(layout, keyring, publisher, Ceremony(layout, keyring, publisher, clock))


@contextmanager
def asked_authority(
    directory: Path, passphrase_file: Path | None, keys: list[str] | None, online_key: str | None = None
) -> Iterator[Authority]:
    """The same, with whoever sits at the terminal.

    Raises:
        OperatorError: As `opened_authority` says.
    """
    with opened_authority(directory, interactive(passphrase_file), keys, online_key) as authority:
        yield authority


def use_online_key(layout: AuthorityLayout, uri: str) -> None:
    """Have the registrar sign with another online key from its next start on."""
    settings = layout.registrar_settings
    text = settings.read_text(encoding="utf-8")
    line = f"online = {json.dumps(from_here(uri))}"
    data = re.sub(r"^online = .*$", lambda _: line, text, flags=re.MULTILINE).encode()
    store_atomically(settings, data, mode=0o600)  # a database's password may stand there


def tell_outcome(authority: Authority, pending: PendingChange, done: str) -> None:
    """Say whether a change is published, or what it waits for."""
    if pending.is_complete:
        typer.echo(done)
        return
    path = authority.ceremony.pending_file(pending)
    typer.echo(f"Not published yet: {pending.role} needs {pending.missing} more signature(s). It waits in {path}.")
    typer.echo("Take the file to who holds the other keys; there: seh-provision consortium sign FILE --key URI")
    typer.echo(f"Then here: seh-provision consortium sign FILE --directory {authority.layout.path}")


def describe_change(pending: PendingChange) -> list[str]:
    """What somebody who is asked to sign should read, a line each."""
    lines = [f"{pending.role}, version {pending.version}"]
    if pending.role == Root.type:
        root = Metadata[Root].from_bytes(pending.data).signed
        lines.append(f"  counts until {root.expires:%Y-%m-%d}")
        for name, owners in root.roles.items():
            lines.append(f"  {name}: {owners.threshold} of {len(owners.keyids)} keys must sign")
            lines += [f"    key {fingerprint(root.get_key(keyid))}" for keyid in owners.keyids]
        return lines
    signed = Metadata[Targets].from_bytes(pending.data).signed
    lines.append(f"  counts until {signed.expires:%Y-%m-%d}")
    lines += [f"  lists {path}, SHA-256 {target.hashes.get('sha256')}" for path, target in signed.targets.items()]
    delegations = signed.delegations
    for role in (delegations.roles or {}).values() if delegations else ():
        lines.append(f"  delegates {', '.join(role.paths or ())} to {role.name}: {role.threshold} must sign")
        lines += [f"    key {fingerprint(signed.get_key(keyid))}" for keyid in role.keyids]
    return lines


def fingerprint(key: object) -> str:
    """SHA-256 of a listed key's SubjectPublicKeyInfo, hex: what its owner can compare."""
    return key_id(elliptic_key(key))


def site_keys(keyring: Keyring, uri: str | None, public_key: Path | None) -> RoleKeys:
    """The key that a hospital is to sign with.

    Args:
        keyring: Opens it, where it is here.
        uri: Where it lives.
        public_key: Its public half, PEM, where it is not here.

    Raises:
        OperatorError: Not exactly one is named, or it cannot be used.
    """
    if (uri is None) == (public_key is None):
        raise OperatorError(
            "site.one_key",
            "A hospital is added with exactly one of --key and --public-key.",
            next_step="Name its key, or the file of its public key.",
        )
    if public_key is not None:
        try:
            key = parse_public_pem(public_key.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise OperatorError(
                "site.bad_public_key",
                f"{public_key} cannot be used as a hospital's public key: {error}.",
                next_step="Name a PEM file with a public key on P-256 or P-384.",
            ) from error
    else:
        key = elliptic_key(keyring.open(from_here(str(uri))).public_key)
    # The same bytes whichever way it came: boxes compare them.
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
    return RoleKeys((listed_key(parse_public_pem(pem)),), 1)


def from_here(uri: str) -> str:
    """Paths on a command line begin where the command is called."""
    scheme, _, target = uri.partition(":")
    return f"{scheme}:{Path(target).absolute()}" if scheme == "file" else uri
