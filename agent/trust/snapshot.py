"""What a box holds to be true about its consortium at one moment: the trust repository, verified and read.

Made only by `agent.trust.repository`. Who speaks for a hospital is read from the role that the hospital's own key
signs, and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.ids import SiteID
from agent.statements.chain import NodeRecord, TrustView
from agent.statements.roots import EvidenceClass, KeyKind
from agent.trust.records import ConsortiumRecord, NodeFile, StewardFile


class Environment(StrEnum):
    """What the root metadata says the consortium is for; every root version says the same."""

    PRODUCTION = "production"
    TEST = "test"  # simulators' makers and software keys count too


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """A hospital, as its own key signed.

    Args:
        site: Its name.
        version: Version of its role's metadata.
        nodes: Every box on record, sorted by name, revoked ones included.
        stewards: Who decides there, sorted by name.
        revoked: Ids (SHA-256 of SubjectPublicKeyInfo, hex) of keys that count no more.
        expires_s: Until when the metadata counts, exclusive, in seconds since 1970.
        keys: Sign the role: P-256 or P-384.
        threshold: How many of them must.
    """

    site: SiteID
    version: int
    nodes: tuple[NodeFile, ...]
    stewards: tuple[StewardFile, ...]
    revoked: frozenset[str]
    expires_s: int
    keys: tuple[ec.EllipticCurvePublicKey, ...]
    threshold: int = 1


@dataclass(frozen=True, slots=True)
class TrustSnapshot:
    """The whole repository at one timestamp.

    Args:
        root_digest: SHA-256 of the pinned first root metadata, hex: what certificates and evidence call the consortium.
        environment: What the consortium is for.
        root_version: Of the newest root metadata.
        timestamp_version: Of the timestamp that this was read at.
        oldest_timestamp: The oldest timestamp version that a session certificate may still name.
        issued_s: When the timestamp says that it was signed, in seconds since 1970.
        expires_s: Until when root, timestamp, snapshot and targets count, exclusive, in seconds since 1970.
        consortium: Names, servers, keys and terms.
        sites: Hospitals that count.
        set_aside: Hospitals that are on record and do not count now: why, in plain words.
        studies: Study ids, sorted; fetch `studies/<id>/study.json`.
    """

    root_digest: str
    environment: Environment
    root_version: int
    timestamp_version: int
    oldest_timestamp: int
    issued_s: int
    expires_s: int
    consortium: ConsortiumRecord
    sites: Mapping[SiteID, SiteRecord]
    set_aside: Mapping[SiteID, str]
    studies: tuple[str, ...]

    def is_current(self, now_s: int) -> bool:
        """Whether it counts at `now_s`; a box that lost its link may hold one that no longer does."""
        return now_s < self.expires_s

    def view(self, site: SiteID, minimum: EvidenceClass = EvidenceClass.NONE) -> TrustView:
        """What `agent.statements.chain` verifies a hospital's certificates against.

        Args:
            site: The hospital: its own boxes and revocations alone, so that no other can put its keys on record, or
                revoke them.
            minimum: The least evidence class wanted here; the consortium's own minimum holds in any case.
        """
        record = self.sites.get(site)
        nodes = () if record is None else record.nodes
        admitted = [NodeRecord(node.site, node.node, node.root) for node in nodes if self._counts(node)]
        return TrustView(
            consortium=self.root_digest,
            records={node.root.key_id: node for node in admitted},
            revoked=frozenset() if record is None else record.revoked,
            oldest_timestamp=self.oldest_timestamp,
            newest_timestamp=self.timestamp_version,
            minimum_evidence=self._minimum(minimum),
        )

    def node(self, key_id: str, *, site: SiteID) -> NodeFile | None:
        """The box with this hardware key at `site`, if it counts and is not revoked.

        Args:
            key_id: SHA-256 of its SubjectPublicKeyInfo, hex.
            site: The hospital that must have put it on record.
        """
        return next((node for node in self._in_force(site, EvidenceClass.NONE) if node.root.key_id == key_id), None)

    def speaker(self, site: SiteID, minimum: EvidenceClass = EvidenceClass.NONE) -> NodeFile | None:
        """The one box that speaks for `site` in secure aggregation; None where there is none.

        It is the one that was enrolled first among those in force; the others are spares. Secure aggregation counts
        hospitals by what each one agreed to or gave up, and each box remembers that for itself: two boxes of one
        hospital could say both, like a colluder. A hospital moves to its next box by revoking the one before, better
        between two rounds than in one.

        Args:
            site: The hospital.
            minimum: The least evidence class that the study wants.
        """
        return min(self._in_force(site, minimum), key=lambda node: (node.enrolled, node.node), default=None)

    def maker_certificates(self) -> Mapping[EvidenceClass, str]:
        """Certificates (PEM) of makers that count here; those of simulators only in a test environment."""
        found = {EvidenceClass[name.upper()]: pem for name, pem in self.consortium.makers.items()}
        if self.environment is not Environment.TEST:
            found.pop(EvidenceClass.TEST, None)
        return found

    def _in_force(self, site: SiteID, minimum: EvidenceClass) -> Iterator[NodeFile]:
        record = self.sites.get(site)
        if record is None:
            return
        wanted = self._minimum(minimum)
        for node in record.nodes:
            root = node.root
            if self._counts(node) and root.shown >= wanted and root.key_id not in record.revoked:
                yield node

    def _counts(self, node: NodeFile) -> bool:
        """Whether the consortium admits its kind of key; software and simulators only in a test environment."""
        is_simulated = node.kind is KeyKind.SOFTWARE or node.evidence == "test"
        if is_simulated and self.environment is not Environment.TEST:
            return False
        return node.kind in self.consortium.evidence.kinds

    def _minimum(self, wanted: EvidenceClass) -> EvidenceClass:
        return max(wanted, EvidenceClass[self.consortium.evidence.minimum.upper()])


class TrustSource(Protocol):
    """Where others take the newest snapshot from; thread-safe."""

    def current(self) -> TrustSnapshot:
        """The newest snapshot known here, without asking anybody."""
        ...

    def refresh(self) -> TrustSnapshot:
        """Ask the repository, and return the newest snapshot."""
        ...

    def now_s(self) -> int:
        """The present, in seconds since 1970, not before the latest signed time."""
        ...
