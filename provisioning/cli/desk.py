"""What a hospital's commands share: its key, its own reading of the repository, and the line to the registrar."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from agent.core.base64url import encode_bytes
from agent.core.clock import SystemClock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID, check_identifier
from provisioning.authority.signers import elliptic_key, open_signer, sign_der
from provisioning.authority.site import SiteDesk, StagedSite
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_repository import FetchedSource, opened_repository
from provisioning.cli.files import read_file
from provisioning.cli.secrets import interactive
from provisioning.tokens.token import Issuer

SiteOption = Annotated[str, typer.Option(help="The hospital.")]
SiteKeyOption = Annotated[str, typer.Option(help="Its key: file:<path>, piv:..., pkcs11:..., tpm:...")]
StateOption = Annotated[Path, typer.Option(help="The state directory of `seh-provision site endorse`.")]
RegistrarOption = Annotated[str, typer.Option(help="The registrar's host:port.")]
RootOption = Annotated[Path, typer.Option(help="1.root.json, as the consortium handed it out.")]

_NOT_NEXT = "authority.may_not_follow"
_COPY = "desk"
"""A copy of its own: the endorsing tool, which may be running, holds another."""


@dataclass(frozen=True, slots=True)
class OpenDesk:
    """A hospital's desk, and the way from it to the registrar.

    Args:
        desk: Signs.
        line: To the registrar.
        refresh: Reads the repository anew.
    """

    desk: SiteDesk
    line: SiteLine
    refresh: Callable[[], object]

    def publish(self, stage: Callable[[SiteDesk], StagedSite]) -> StagedSite:
        """Have something signed and published.

        Args:
            stage: Signs it, from the newest state.

        Raises:
            OperatorError: The registrar refuses it.
            NetworkError: It does not answer.
        """
        staged = stage(self.desk)
        try:
            self._send(staged)
        except OperatorError as error:
            if error.details.get("registrar_code") != _NOT_NEXT:
                raise
            # Something else was published meanwhile, an earlier try of this command perhaps.
            self.refresh()
            staged = stage(self.desk)
            self._send(staged)
        return staged

    def _send(self, staged: StagedSite) -> None:
        fields = {
            "metadata": encode_bytes(staged.metadata),
            "targets": {path: encode_bytes(data) for path, data in staged.targets.items()},
        }
        self.line.call("POST", "/metadata", json.dumps(fields).encode())


@contextmanager
def opened_desk(
    site: str, key: str, *, state: Path, registrar: str, root: Path, passphrase_file: Path | None
) -> Iterator[OpenDesk]:
    """Open a hospital's desk over the newest state of the repository.

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
    site_id, clock = SiteID(check_identifier(site, kind="site")), SystemClock()
    signer = open_signer(key, interactive(passphrase_file))
    issuer = Issuer(elliptic_key(signer.public_key), lambda data: sign_der(signer, data))
    with opened_repository(state / _COPY, registrar, read_file(root), clock) as copy:
        snapshot = copy.refresh()
        trust = ssl.create_default_context(cadata=snapshot.consortium.registrar.root_certificates)
        with SiteLine(
            registrar,
            trust,
            consortium=copy.root_digest,
            site=site_id,
            key=issuer,
            clock=clock,
            random_bytes=secrets.token_bytes,
        ) as line:
            yield OpenDesk(SiteDesk(site_id, FetchedSource(copy), [signer], clock), line, copy.refresh)
