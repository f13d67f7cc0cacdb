"""The hospital's own copy of the repository: fetched and verified by its own tools, not by the registrar's word."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tuf.api.metadata import TargetFile

from agent.core.clock import Clock
from agent.trust.fetcher import BoundedFetcher
from agent.trust.repository import TrustRepository, bootstrap


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
        """The endorsing tool's copy of the repository."""
        return self.state / "trust"

    @property
    def desk_trust(self) -> Path:
        """The other commands' copy: the endorsing tool, which may be running, holds its own."""
        return self.state / "desk"

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
