"""Who speaks for which hospital: by the trust repository that this party verified, or by the roster that it pinned.

Never by what the other side relays.
"""

from __future__ import annotations

import hashlib
from copy import copy
from threading import Lock
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.secagg import refusals
from agent.statements.chain import NodeRecord, Session, TrustView, verify_session
from agent.statements.envelope import parse_proof
from agent.statements.roots import EvidenceClass, public_key_bytes
from agent.trust.counters import CounterStore
from agent.trust.roster import Roster
from agent.trust.snapshot import TrustSnapshot, TrustSource
from agent.trust.tuf_faults import check_not_expired

NODE_NAME_CHARACTERS = 16
REFRESH_PAUSE_S: Final = 2
"""Least time, in seconds, between two refreshes that others' certificates caused: none makes this party ask all day."""


def node_name(key_id: str) -> str:
    """A node's name until its site gives it one: the head of its hardware key's id."""
    return key_id[:NODE_NAME_CHARACTERS]


def consortium_digest(coordinator: ec.EllipticCurvePublicKey) -> str:
    """What session certificates name as their consortium, hex: its coordinator's key."""
    return hashlib.sha256(public_key_bytes(coordinator)).hexdigest()


class Peers(Protocol):
    """Verifies who speaks for which hospital; thread-safe."""

    def demanding(self, minimum: EvidenceClass) -> Peers:
        """The same peers, for a study that wants so much evidence of each."""
        ...

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """The session key that speaks for `site`; see `agent.secagg.attempt.Roster`."""
        ...


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


class RepositoryPeers:
    """Verifies session certificates against the newest snapshot of the trust repository; thread-safe.

    A hospital is spoken for by one box (`TrustSnapshot.speaker`); what it revokes counts from the next snapshot on.
    """

    def __init__(
        self, source: TrustSource, counters: CounterStore, *, minimum: EvidenceClass = EvidenceClass.NONE
    ) -> None:
        """Prepare.

        Args:
            source: Of snapshots, and of the present.
            counters: What this party remembers of FIDO2 keys.
            minimum: The least evidence class that counts; the consortium's own minimum holds in any case.
        """
        self._source = source
        self._counters = counters
        self._minimum = minimum
        self._renewal = _Renewal(source)

    def demanding(self, minimum: EvidenceClass) -> RepositoryPeers:
        """The same peers, for a study that wants so much evidence of each."""
        peers = copy(self)  # with the same renewal
        peers._minimum = minimum  # noqa: SLF001 - its own class
        return peers

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """The session key that speaks for `site`.

        A certificate that names a newer state of the repository than ours, or a box that is not on record here yet,
        has the repository fetched once, then is looked at anew.

        Raises:
            PeerProtocolError: The certificate does not count, or speaks for another hospital or for a spare box, or
                what is known here has expired and cannot be renewed; the error names `site`.
            HardwareError: The disk does not take what is to be remembered of a FIDO2 key.
        """
        try:
            session = self._verify(SiteID(site), certificate)
            self._counters.check(session, now_s=self._source.now_s())
        except (PeerProtocolError, NetworkError, OperatorError) as error:
            raise refusals.untrusted_certificate(site, error) from error
        if not isinstance(session.public_key.curve, ec.SECP256R1):
            raise refusals.untrusted_certificate(site)
        return session.public_key

    def _verify(self, site: SiteID, certificate: bytes) -> Session:
        snapshot = self._source.current()
        try:
            return self._verify_by(snapshot, site, certificate)
        except NetworkError:
            pass
        except PeerProtocolError:
            if _is_on_record(snapshot, site, certificate):
                raise
        return self._verify_by(self._renewal.renewed(), site, certificate)

    def _verify_by(self, snapshot: TrustSnapshot, site: SiteID, certificate: bytes) -> Session:
        now_s = self._source.now_s()
        if not snapshot.is_current(now_s):
            raise _view_expired()
        record = snapshot.sites.get(site)
        if record is None:
            raise _left_out(snapshot.set_aside.get(site, f"The consortium's trust repository has no {site}."))
        check_not_expired(f"what {site} signed", record.expires_s, now_s)
        session = verify_session(certificate, snapshot.view(site, self._minimum), now_s=now_s)
        speaker = snapshot.speaker(site, self._minimum)
        if speaker is None or speaker.root.key_id != session.record.root.key_id:
            raise _spare(site)
        return session


class _Renewal:
    """Asks the repository for others' sake, now and then."""

    def __init__(self, source: TrustSource) -> None:
        self._source = source
        self._lock = Lock()
        self._asked_s = 0

    def renewed(self) -> TrustSnapshot:
        """The newest snapshot, asked for unless that was done a moment ago."""
        with self._lock:
            now_s = self._source.now_s()
            if abs(now_s - self._asked_s) < REFRESH_PAUSE_S:
                return self._source.current()
            self._asked_s = now_s
            return self._source.refresh()


def _is_on_record(snapshot: TrustSnapshot, site: SiteID, certificate: bytes) -> bool:
    record, signer = snapshot.sites.get(site), parse_proof(certificate).key_id
    return record is not None and any(node.root.key_id == signer for node in record.nodes)


def _view_expired() -> NetworkError:
    return NetworkError(
        "trust.view_expired",
        "What this box knows of its consortium's trust repository has expired.",
        next_step="It is fetched as soon as the registrar can be reached; check the network.",
    )


def _left_out(why: str) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.site_left_out", why, next_step="Its boxes take part again once its own record in the repository holds."
    )


def _spare(site: str) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.spare_box",
        f"The box is a spare one of {site}: another, enrolled before it, speaks for that hospital.",
        next_step=f"To have the spare box take over, {site} revokes the one before it.",
    )


def _two_nodes(site: str) -> OperatorError:
    return OperatorError(
        "roster.two_nodes",
        f"The roster names several nodes of {site}; secure aggregation counts sites, and takes one node each.",
        next_step="Leave one node of that site in the roster, and install it on every box.",
    )
