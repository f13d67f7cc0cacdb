"""What a hospital's commands share: their options, and its office, opened with whoever sits at the terminal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from agent.core.clock import SystemClock
from agent.core.ids import SiteID, check_identifier
from provisioning.authority.signers import open_signer
from provisioning.authority.site_office import SiteOffice, opened_office
from provisioning.authority.site_repository import SitePlace
from provisioning.cli.files import read_file
from provisioning.cli.secrets import interactive

SiteOption = Annotated[str, typer.Option(help="The hospital.")]
SiteKeyOption = Annotated[str, typer.Option(help="Its key: file:<path>, piv:..., pkcs11:..., tpm:...")]
StateOption = Annotated[Path, typer.Option(help="The state directory of `seh-provision site endorse`.")]
RegistrarOption = Annotated[str, typer.Option(help="The registrar's host:port.")]
RootOption = Annotated[Path, typer.Option(help="1.root.json, as the consortium handed it out.")]


@contextmanager
def asked_office(
    site: str, key: str, state: Path, registrar: str, root: Path, passphrase_file: Path | None
) -> Iterator[SiteOffice]:
    """Open a hospital's office over the newest state of the repository.

    Args:
        site: The hospital.
        key: URI of its key.
        state: Where its tools keep what they must not forget.
        registrar: `host:port`.
        root: File of the first root metadata.
        passphrase_file: Opens the key's file.

    Raises:
        SecureHealthError: The key or the consortium cannot be opened or read.
    """
    place = SitePlace(state, registrar, read_file(root))
    with opened_office(
        SiteID(check_identifier(site, kind="site")),
        open_signer(key, interactive(passphrase_file)),
        place,
        SystemClock(),
        copy=place.desk_trust,
        random_bytes=secrets.token_bytes,
    ) as office:
        yield office
