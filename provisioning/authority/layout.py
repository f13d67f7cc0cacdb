"""Where a consortium's authority keeps what it has: one directory, of which only `repository/` is shown to others.

repository/             the TUF repository as it is served
proposal.cbor           what the publisher is about to publish (`provisioning.authority.publisher`)
pending/                metadata that waits for further offline signatures (`provisioning.authority.ceremony`)
keys/                   private keys, encrypted; the offline ones belong on another medium
signers.json            which key lives where
organisation-2/         what the second organisation takes away: its keys and its cosigner
tls/                    the servers' certificates and the authority that issues them
superlink/              Flower's home with the operator's connection
registrar.toml          the registrar's settings
units/                  systemd units for the operator's host
founding.json           what was asked for when the consortium was founded
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AuthorityLayout:
    """Names the files of an authority's directory.

    Args:
        path: The directory.
    """

    path: Path

    @property
    def repository(self) -> Path:
        """The TUF repository as it is served."""
        return self.path / "repository"

    @property
    def proposal(self) -> Path:
        """What is about to be published."""
        return self.path / "proposal.cbor"

    @property
    def lock(self) -> Path:
        """Held while something is published."""
        return self.path / "publisher.lock"

    @property
    def pending(self) -> Path:
        """Metadata that waits for further offline signatures."""
        return self.path / "pending"

    @property
    def keys(self) -> Path:
        """Private keys."""
        return self.path / "keys"

    @property
    def signers(self) -> Path:
        """Which key lives where."""
        return self.path / "signers.json"

    @property
    def second_organisation(self) -> AuthorityLayout:
        """What the second organisation takes away."""
        return AuthorityLayout(self.path / "organisation-2")

    @property
    def tls(self) -> Path:
        """The servers' certificates and the authority that issues them."""
        return self.path / "tls"

    @property
    def superlink(self) -> Path:
        """Flower's home with the operator's connection."""
        return self.path / "superlink"

    @property
    def registrar_settings(self) -> Path:
        """The registrar's settings."""
        return self.path / "registrar.toml"

    @property
    def cosigner_settings(self) -> Path:
        """The cosigner's settings."""
        return self.path / "cosigner.toml"

    @property
    def founding(self) -> Path:
        """What was asked for when the consortium was founded."""
        return self.path / "founding.json"
