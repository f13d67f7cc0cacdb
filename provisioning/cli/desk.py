"""What a hospital's commands share: their options, and its office, opened with whoever sits at the terminal."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Concatenate

import typer

from agent.core.clock import SystemClock
from agent.core.ids import SiteID, check_identifier
from provisioning.authority.signers import open_signer
from provisioning.authority.site_office import SiteOffice, opened_office
from provisioning.authority.site_repository import SitePlace
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive

SiteOption = Annotated[str, typer.Option(help="The hospital.")]
SiteKeyOption = Annotated[str, typer.Option(help="Its key: file:<path>, piv:..., pkcs11:..., tpm:...")]
StateOption = Annotated[Path, typer.Option(help="The state directory of `seh-provision site endorse`.")]
RegistrarOption = Annotated[str, typer.Option(help="The registrar's host:port.")]
RootOption = Annotated[Path, typer.Option(help="1.root.json, as the consortium handed it out.")]


@dataclass(frozen=True, slots=True)
class Hospital:
    """Whose office a command opens, as its options name it; each field is one of them.

    Args:
        site: The hospital.
        key: URI of its key.
        state: Where its tools keep what they must not forget.
        registrar: `host:port`.
        root: File of the first root metadata.
        passphrase_file: Opens the key's file.
    """

    site: SiteOption
    key: SiteKeyOption
    state: StateOption
    registrar: RegistrarOption
    root: RootOption
    passphrase_file: PassphraseFile = None

    @contextmanager
    def office(self) -> Iterator[SiteOffice]:
        """Open the office over the newest state of the repository.

        Raises:
            SecureHealthError: The key or the consortium cannot be opened or read.
        """
        place = SitePlace(self.state, self.registrar, read_file(self.root))
        with opened_office(
            SiteID(check_identifier(self.site, kind="site")),
            open_signer(self.key, interactive(self.passphrase_file)),
            place,
            SystemClock(),
            copy=place.desk_trust,
            random_bytes=secrets.token_bytes,
        ) as office:
            yield office


def for_hospital(command: Callable[Concatenate[Hospital, ...], None]) -> Callable[..., None]:
    """Make of a function that takes a hospital a command that has a hospital's options, behind its own.

    Args:
        command: Takes a hospital first.
    """
    options = signature(Hospital, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - whatever the command's own options are
        command(Hospital(**{name: given.pop(name) for name in options}), **given)

    _, *own = signature(command, eval_str=True).parameters.values()
    offered = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in (*own, *options.values())]
    # What typer reads of a function: PEP 362, and PEP 3107 beside it.
    run.__signature__ = Signature(offered)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in offered}
    return run
