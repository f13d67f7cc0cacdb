"""What a site's operator must know of the consortium to issue tokens: fetched afresh, verified from its first root."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from tuf.ngclient import FetcherInterface

from agent.core.clock import Clock
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.fetcher import BoundedFetcher
from agent.trust.repository import TrustRepository, bootstrap
from agent.trust.snapshot import TrustSnapshot
from provisioning.tokens.token import Issuer


def fetch_consortium(registrar: str, first_root: bytes, clock: Clock) -> TrustSnapshot:
    """Fetch the consortium's repository and verify it.

    Args:
        registrar: `host:port`, which serves it.
        first_root: `1.root.json`, as the consortium handed it out.
        clock: For expiry and limits.

    Raises:
        PeerProtocolError: It does not verify, or begins at another root.
        NetworkError: It cannot be fetched.
    """
    with closing(BoundedFetcher(clock)) as fetcher:
        return read_consortium(f"https://{registrar}/repository/", first_root, fetcher, clock)


def read_consortium(url: str, first_root: bytes, fetcher: FetcherInterface, clock: Clock) -> TrustSnapshot:
    """Read the repository at `url` through `fetcher`; nothing of it is kept."""
    with TemporaryDirectory(prefix="seh-token-") as place:
        directory = Path(place)
        bootstrap(directory, first_root, hashlib.sha256(first_root).hexdigest())
        with TrustRepository(directory, url, fetcher, clock) as repository:
            return repository.refresh()


def check_issuer(snapshot: TrustSnapshot, site: SiteID, issuer: Issuer) -> None:
    """Refuse to sign a token that no box could verify.

    Raises:
        OperatorError: The hospital does not count (`token.unknown_site`), or the key is none of its own
            (`token.wrong_issuer_key`).
    """
    record = snapshot.sites.get(site)
    if record is None:
        why = snapshot.set_aside.get(site, f"{snapshot.consortium.name} knows no hospital {site}.")
        raise OperatorError(
            "token.unknown_site",
            f"No box can be enrolled at {site}: {why}",
            next_step="Ask the consortium to add the hospital; then `seh-provision site endorse` signs its record.",
        )
    if key_id(issuer.public_key) not in {key_id(key) for key in record.keys}:
        raise OperatorError(
            "token.wrong_issuer_key",
            f"The token was not issued: the key is none that the consortium knows of {site}.",
            next_step="Name the key that signs for this site, or the registrar's own.",
        )
