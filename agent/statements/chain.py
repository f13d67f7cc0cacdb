"""The whole chain in one verifier: session key -> hardware root -> the site's signed record of that root.

Peers, registrar and coordinator all verify with this module; it needs no hardware library, only `cryptography`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import NetworkError, PeerProtocolError
from agent.statements.envelope import Proof, Statement, parse_proof
from agent.statements.kinds import SessionCertificate
from agent.statements.roots import (
    LONGEST_LIFETIME_S,
    EvidenceClass,
    RootKey,
    load_public_key,
    public_key_bytes,
    verify_proof,
    verify_with,
)

CLOCK_SKEW_S = 120
"""How far two hospitals' clocks may lie apart, in seconds; less than any lifetime by far."""

S = TypeVar("S", bound=Statement)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as its own site's signed metadata names it.

    Args:
        site: The hospital that signed.
        node: The box.
        root: Its hardware key.
    """

    site: str
    node: str
    root: RootKey


@dataclass(frozen=True, slots=True)
class TrustView:
    """What a verifier holds to be true at one moment, all of it from the verified trust repository.

    Args:
        consortium: Digest of the pinned trust root, in hex.
        records: Node records by their root's key id.
        revoked: Key ids that the sites have revoked; a revoked root vouches for nothing, whatever its certificates say.
        oldest_timestamp: Version of the oldest repository timestamp that a certificate may still name.
        newest_timestamp: Version of the newest one that this verifier has seen.
        minimum_evidence: The least evidence class that counts (a study may raise it).
    """

    consortium: str
    records: Mapping[str, NodeRecord]
    revoked: frozenset[str]
    oldest_timestamp: int
    newest_timestamp: int
    minimum_evidence: EvidenceClass = EvidenceClass.NONE


@dataclass(frozen=True, slots=True)
class Session:
    """A verified session: whose key signs, and until when.

    Args:
        record: The node, as its site names it.
        public_key: The short-lived key.
        expires_s: Until when it counts, in seconds since 1970; the caller verifies anew after that.
        signature_count: Counter of a FIDO2 root, for the verifier to remember; else 0.
        timestamp_version: The newest repository timestamp that the node had seen.
        certificate: Digest (hex) of what was signed; the same however envelope and signature are written.
    """

    record: NodeRecord
    public_key: ec.EllipticCurvePublicKey
    expires_s: int
    signature_count: int
    timestamp_version: int
    certificate: str


def verify_session(envelope: bytes, view: TrustView, *, now_s: int) -> Session:
    """Verify a session certificate against what the trust repository says.

    Args:
        envelope: The DSSE envelope as it came off the wire.
        view: What this verifier holds to be true.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: The certificate does not count; the sentence says why.
        NetworkError: It names a newer state of the repository than ours: refresh, then verify again
            (`statements.view_behind`).
    """
    # 1. Whatever it says, it must be one signed statement of the right kind.
    proof = parse_proof(envelope)
    _check_kind(proof, SessionCertificate)
    # 2. Its root must stand in a site's record, not be revoked, and be good enough.
    record = _find_record(proof.key_id, view)
    # 3. That root must have signed it; nothing inside is believed before this step.
    count = verify_proof(proof, record.root)
    certificate = SessionCertificate.parse(proof.payload)
    # 4. It must speak about this consortium, this site, this node and this root.
    _check_subject(certificate, record, view)
    # 5. It must count now, and not for longer than its kind of root may vouch.
    _check_times(certificate, record, now_s)
    # 6. Its issuer must have known a recent state of the repository.
    _check_timestamp(certificate, view)
    # 7. The session key must be one that can sign, and another than the root.
    public_key = load_public_key(bytes.fromhex(certificate.session_key))
    if public_key_bytes(public_key) == record.root.public_key:
        raise _not_accepted("the hardware key vouches for itself")
    digest = certificate.digest().hex()
    return Session(record, public_key, certificate.expires_s, count, certificate.timestamp_version, digest)


def verify_statement(proof: Proof, session: Session, kind: type[S], *, now_s: int) -> S:
    """Verify a statement that a session key signed, and read it.

    Args:
        proof: As parsed.
        session: Verified before; it may have ended since.
        kind: The one kind of statement that is expected here.
        now_s: Seconds since 1970.

    Returns:
        The statement; whether it is fresh and meant for us is for its own fields to say.

    Raises:
        PeerProtocolError: Another kind, another key, altered bytes, or the session has ended.
    """
    if now_s >= session.expires_s:
        raise _not_accepted("its session has ended")
    _check_kind(proof, kind)
    verify_with(session.public_key, proof)
    return kind.parse(proof.payload)


def _check_kind(proof: Proof, kind: type[Statement]) -> None:
    if proof.payload_type != kind.payload_type():
        raise _not_accepted(f"a {kind.kind} was expected, and it is of another kind or version")


def _find_record(key_id: str, view: TrustView) -> NodeRecord:
    record = view.records.get(key_id)
    if record is None or record.root.key_id != key_id:
        raise _not_accepted("no hospital has put its key on record")
    if key_id in view.revoked:
        raise _not_accepted("its key was revoked")
    if record.root.shown < view.minimum_evidence:
        wanted, has = view.minimum_evidence.name.lower(), record.root.shown.name.lower()
        raise PeerProtocolError(
            "statements.weak_evidence",
            f"A node's key shows evidence of class {has}, and {wanted} is wanted here.",
            next_step="Nothing was done with it. Its hospital needs a box whose key lives in better hardware.",
        )
    return record


def _check_subject(certificate: SessionCertificate, record: NodeRecord, view: TrustView) -> None:
    if certificate.consortium != view.consortium:
        raise _not_accepted("it was made for another consortium")
    if (certificate.site, certificate.node) != (record.site, record.node):
        raise _not_accepted("it names another site or node than its key's record")
    if certificate.root_key != record.root.key_id:
        raise _not_accepted("it names another key than the one that signed it")


def _check_times(certificate: SessionCertificate, record: NodeRecord, now_s: int) -> None:
    if certificate.issued_s > now_s + CLOCK_SKEW_S:
        raise _not_accepted("it begins in the future")
    if certificate.expires_s <= now_s:
        raise _not_accepted("it has expired")
    longest_s = LONGEST_LIFETIME_S[record.root.kind]
    if not 0 < certificate.expires_s - certificate.issued_s <= longest_s:
        kind = record.root.kind.value
        raise _not_accepted(f"it counts for longer than the {longest_s // 3600} h that a {kind} key may vouch for")


def _check_timestamp(certificate: SessionCertificate, view: TrustView) -> None:
    if certificate.timestamp_version < view.oldest_timestamp:
        raise _not_accepted("its node has not seen the trust repository for too long")
    if certificate.timestamp_version > view.newest_timestamp:
        raise NetworkError(
            "statements.view_behind",
            "Another hospital's node has seen a newer state of the trust repository than this one.",
            next_step="The repository is fetched again, and then the message is looked at anew.",
            ours=view.newest_timestamp,
            theirs=certificate.timestamp_version,
        )


def _not_accepted(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "statements.not_accepted",
        f"A node's statement does not count: {what}.",
        next_step="Nothing was done with it. If the node is known, its technician sees the same in `seh-agent status`.",
    )
