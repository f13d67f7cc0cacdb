"""All that a hospital's tools work with: its key, its own reading of the repository, and the line to the registrar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from agent.core.base64url import encode_bytes
from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.trust.repository import TrustRepository
from provisioning.authority.signers import elliptic_key, sign_der
from provisioning.authority.site import SiteDesk, StagedSite
from provisioning.authority.site_line import SiteLine
from provisioning.authority.site_repository import FetchedSource, SitePlace, opened_repository
from provisioning.tokens.token import Issuer, RandomBytes

_NOT_NEXT = "authority.may_not_follow"


@dataclass(frozen=True, slots=True)
class SiteOffice:
    """A hospital's office.

    Args:
        site: The hospital.
        signer: Its key.
        copy: Its own copy of the repository, refreshed at least once.
        line: To the registrar.
        clock: For times.
    """

    site: SiteID
    signer: Signer
    copy: TrustRepository
    line: SiteLine
    clock: Clock

    @property
    def desk(self) -> SiteDesk:
        """Signs, from the state that was read last."""
        return SiteDesk(self.site, FetchedSource(self.copy), [self.signer], self.clock)

    def publish(self, stage: Callable[[SiteDesk], StagedSite]) -> StagedSite:
        """Have something signed, from the newest state, and published.

        Args:
            stage: Signs it.

        Raises:
            OperatorError: The registrar refuses it.
            NetworkError: It does not answer.
        """
        try:
            return self._publish(stage)
        except OperatorError as error:
            if error.details.get("registrar_code") != _NOT_NEXT:
                raise
            # Something else was published meanwhile: by another of the hospital's tools, or an earlier try of this one.
            return self._publish(stage)

    def _publish(self, stage: Callable[[SiteDesk], StagedSite]) -> StagedSite:
        self.copy.refresh()
        staged = stage(self.desk)
        fields = {
            "metadata": encode_bytes(staged.metadata),
            "targets": {path: encode_bytes(data) for path, data in staged.targets.items()},
        }
        self.line.call("POST", "/metadata", json.dumps(fields).encode())
        return staged


def issuer_of(signer: Signer) -> Issuer:
    """A key as it signs tokens and requests.

    Raises:
        OperatorError: It is on another curve than P-256 and P-384.
    """
    return Issuer(elliptic_key(signer.public_key), lambda data: sign_der(signer, data))


@contextmanager
def opened_office(
    site: SiteID, signer: Signer, place: SitePlace, clock: Clock, *, copy: Path, random_bytes: RandomBytes
) -> Iterator[SiteOffice]:
    """Open a hospital's office over the newest state of the repository.

    Args:
        site: The hospital.
        signer: Its key.
        place: Where it keeps what it must not forget, and whom it asks.
        clock: For times.
        copy: Which of the place's copies of the repository.
        random_bytes: `secrets.token_bytes`.

    Raises:
        SecureHealthError: The consortium cannot be read, or is another one than before.
    """
    with opened_repository(copy, place.registrar, place.first_root, clock) as repository:
        consortium = repository.refresh().consortium
        with SiteLine(
            consortium.registrar,
            consortium=repository.root_digest,
            site=site,
            key=issuer_of(signer),
            clock=clock,
            random_bytes=random_bytes,
        ) as line:
            yield SiteOffice(site, signer, repository, line, clock)
