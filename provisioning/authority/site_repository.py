"""The hospital's own copy of the repository: fetched and verified by its own tools, not by the registrar's word."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile

from agent.core.clock import Clock
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.fetcher import BoundedFetcher
from agent.trust.repository import TrustRepository, bootstrap
from provisioning.authority.endorsing import Decide, EndorsingTool, Repository, decide_later
from provisioning.authority.signers import elliptic_key, sign_der
from provisioning.authority.site import SiteDesk
from provisioning.authority.site_line import SiteLine
from provisioning.tokens.state import SiteTokenFiles, UsedTokenFiles
from provisioning.tokens.token import Issuer, RandomBytes


@dataclass(frozen=True, slots=True)
class SitePlace:
    """Where a hospital's tools keep what they must not forget, and whom they ask.

    Args:
        state: Their directory.
        registrar: `host:port`.
        first_root: `1.root.json`, as the consortium handed it out.
    """

    state: Path
    registrar: str
    first_root: bytes = field(repr=False)

    @property
    def trust(self) -> Path:
        """The copy of the repository."""
        return self.state / "trust"

    @property
    def tokens(self) -> Path:
        """Tokens that the hospital's key issued."""
        return self.state / "tokens"

    @property
    def used(self) -> Path:
        """Which box used which of them."""
        return self.state / "used"


class FetchedSource:
    """What a `SiteDesk` signs from, as last fetched and verified.

    Args:
        repository: Refreshed by its owner.
    """

    def __init__(self, repository: TrustRepository) -> None:
        self._repository = repository

    @property
    def root_digest(self) -> str:
        """SHA-256 of the first root metadata, hex."""
        return self._repository.root_digest

    def role(self, name: str) -> bytes | None:
        """Newest metadata of a targets role."""
        return self._repository.metadata(name)

    def target(self, target: TargetFile) -> bytes:
        """A target file."""
        return self._repository.download(target.path)


@contextmanager
def opened_repository(directory: Path, registrar: str, first_root: bytes, clock: Clock) -> Iterator[TrustRepository]:
    """Hold the hospital's copy in `directory`, bound to one consortium from its first use on.

    Args:
        directory: Made where it is missing.
        registrar: `host:port`, which serves the repository.
        first_root: `1.root.json`, as the consortium handed it out.
        clock: For expiry and limits.

    Raises:
        OperatorError: The directory belongs to another consortium, or another process holds it.
    """
    bootstrap(directory, first_root, hashlib.sha256(first_root).hexdigest())
    with (
        closing(BoundedFetcher(clock)) as fetcher,
        TrustRepository(directory, f"https://{registrar}/repository/", fetcher, clock) as repository,
    ):
        yield repository


@contextmanager
def opened_tool(
    site: SiteID,
    signer: Signer,
    place: SitePlace,
    clock: Clock,
    *,
    random_bytes: RandomBytes,
    decide: Callable[[TrustRepository], Decide] = lambda _: decide_later,
) -> Iterator[EndorsingTool]:
    """Open a hospital's endorsing tool over its own copy of the repository.

    Args:
        site: The hospital.
        signer: Its key.
        place: Where it keeps what it must not forget, and whom it asks.
        clock: For times.
        random_bytes: `secrets.token_bytes`.
        decide: Makes what is asked about boxes whose token is not enough.

    Raises:
        SecureHealthError: The consortium cannot be read, or is another one than before.
    """
    public_key = elliptic_key(signer.public_key)
    issuer = Issuer(public_key, lambda data: sign_der(signer, data))
    with opened_repository(place.trust, place.registrar, place.first_root, clock) as copy:
        snapshot = copy.refresh()
        trust = ssl.create_default_context(cadata=snapshot.consortium.registrar.root_certificates)
        with SiteLine(
            place.registrar,
            trust,
            consortium=copy.root_digest,
            site=site,
            key=issuer,
            clock=clock,
            random_bytes=random_bytes,
        ) as line:
            yield EndorsingTool(
                site,
                key_id(public_key),
                line,
                Repository(copy.refresh, lambda: SiteDesk(site, FetchedSource(copy), [signer], clock)),
                kept=SiteTokenFiles(place.tokens),
                used=UsedTokenFiles(place.used),
                clock=clock,
                random_bytes=random_bytes,
                decide=decide(copy),
            )
