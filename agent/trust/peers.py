"""Who speaks for which hospital, by the roster that this party itself pinned; never by what the other side relays."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.secagg import refusals
from agent.statements.chain import NodeRecord, TrustView, verify_session
from agent.statements.roots import EvidenceClass, public_key_bytes
from agent.trust.counters import CounterStore
from agent.trust.roster import Roster

NODE_NAME_CHARACTERS = 16


def node_name(key_id: str) -> str:
    """A node's name until its site gives it one: the head of its hardware key's id."""
    return key_id[:NODE_NAME_CHARACTERS]


def consortium_digest(coordinator: ec.EllipticCurvePublicKey) -> str:
    """What session certificates name as their consortium, hex: its coordinator's key."""
    return hashlib.sha256(public_key_bytes(coordinator)).hexdigest()


class PinnedPeers:
    """Verifies session certificates against a pinned roster; thread-safe."""

    def __init__(
        self, roster: Roster, clock: Clock, counters: CounterStore, *, minimum: EvidenceClass = EvidenceClass.NONE
    ) -> None:
        """Prepare.

        Args:
            roster: Pinned; it names the coordinator's key.
            clock: For certificates' times.
            counters: What this party remembers of FIDO2 keys.
            minimum: The least evidence class that counts.

        Raises:
            OperatorError: A site has several nodes: each could answer the same round, and the site would count twice.
        """
        self._roster = roster
        self._clock = clock
        self._counters = counters
        for site, nodes in roster.sites.items():
            if len(nodes) > 1:
                raise _two_nodes(site)
        records = {
            node.root.key_id: NodeRecord(site, node_name(node.root.key_id), node.root)
            for site, nodes in roster.sites.items()
            for node in nodes
        }
        # Until rosters come from a repository with timestamps, no certificate names a version of one.
        self._view = TrustView(consortium_digest(roster.coordinator_key()), records, frozenset(), 0, 0, minimum)

    def demanding(self, minimum: EvidenceClass) -> PinnedPeers:
        """The same peers, for a study that wants so much evidence of each."""
        return PinnedPeers(self._roster, self._clock, self._counters, minimum=minimum)

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """The session key that speaks for `site`.

        Raises:
            PeerProtocolError: The certificate does not count, or speaks for another hospital; the error names `site`.
            HardwareError: The disk does not take what is to be remembered of a FIDO2 key.
        """
        now_s = int(self._clock.now().timestamp())
        try:
            session = verify_session(certificate, self._view, now_s=now_s)
            self._counters.check(session, now_s=now_s)
        except (PeerProtocolError, NetworkError) as error:
            # There is no newer state of a pinned roster to fetch: who names one is as wrong as who names another key.
            raise refusals.untrusted_certificate(site, error) from error
        if session.record.site != SiteID(site) or not isinstance(session.public_key.curve, ec.SECP256R1):
            raise refusals.untrusted_certificate(site)
        return session.public_key


def _two_nodes(site: str) -> OperatorError:
    return OperatorError(
        "roster.two_nodes",
        f"The roster names several nodes of {site}; secure aggregation counts sites, and takes one node each.",
        next_step="Leave one node of that site in the roster, and install it on every box.",
    )
