"""Appraises a box's evidence by the consortium's terms, for whoever asks: the registrar, and each hospital for itself.

A TPM's evidence needs a second round (`agent.attestation.appraise`); for every other kind the first one is all.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509

from agent.attestation.appraise import Candidate, Policy, appraise_evidence, confirm_activation
from agent.attestation.binding import Exchange
from agent.attestation.evidence import Evidence, parse_evidence
from agent.attestation.fido2 import appraise_fido2
from agent.attestation.makers import TrustStore, build_store, parse_certificate
from agent.attestation.piv import appraise_piv
from agent.attestation.possession import verify_possession
from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.roots import NODE_RP_ID, EvidenceClass, FIDO2Terms, KeyKind, RootKey
from agent.trust.snapshot import Environment, TrustSnapshot

_SHOWS_MAKER: Final = ("ek_certificate", "attestation_issuer", "certificate")
_POSSESSION_ONLY: Final = frozenset({"possession"})


@dataclass(frozen=True, slots=True)
class Terms:
    """Which keys count.

    Args:
        stores: Makers, best class first.
        kinds: Kinds of keys.
        minimum: The least evidence class.
        is_test: Whether simulators and software keys count too.
        vouched_eks: Names of endorsement keys that a hospital's own token names.
    """

    stores: tuple[TrustStore, ...]
    kinds: frozenset[KeyKind]
    minimum: EvidenceClass
    is_test: bool
    vouched_eks: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, snapshot: TrustSnapshot) -> Terms:
        """The consortium's.

        Raises:
            OperatorError: Its record holds something else than makers' certificates (`appraisal.bad_makers`).
        """
        makers = sorted(snapshot.maker_certificates().items(), reverse=True)
        try:
            stores = tuple(build_store(grade, [pem.encode()]) for grade, pem in makers)
        except ValueError as error:
            raise OperatorError(
                "appraisal.bad_makers",
                "The makers' certificates in the consortium's record cannot be read.",
                next_step="Have a corrected consortium.json published.",
            ) from error
        evidence = snapshot.consortium.evidence
        minimum = EvidenceClass[evidence.minimum.upper()]
        return cls(stores, frozenset(evidence.kinds), minimum, snapshot.environment is Environment.TEST)

    def vouching(self, ek_name: bytes) -> Terms:
        """The same terms for a box whose endorsement key a hospital's own token names."""
        return replace(self, vouched_eks=self.vouched_eks | {ek_name})


@dataclass(frozen=True, slots=True)
class Subject:
    """What evidence has to be about, as the box said when it began.

    Args:
        kind: What holds its key.
        public_key: SubjectPublicKeyInfo (DER).
        ek_name: Name of its TPM's endorsement key; empty outside a TPM.
        key_name: Name of the key: a TPM's for it, or else its key id.
    """

    kind: KeyKind
    public_key: bytes
    ek_name: bytes
    key_name: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """A key that counts here.

    Args:
        root: For the node's record.
        ek_name: Name of its TPM's endorsement key; empty outside a TPM.
        maker: Who vouches for it, for people; empty where nobody does.
    """

    root: RootKey
    ek_name: bytes
    maker: str


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A TPM's evidence whose signatures hold; its TPM has to open a credential yet.

    Args:
        candidate: See `agent.attestation.appraise`.
        maker: Who vouches for it, for people.
    """

    candidate: Candidate
    maker: str


def appraise(data: bytes, subject: Subject, exchange: Exchange, terms: Terms, *, now_s: int) -> Finding | Unconfirmed:
    """Appraise evidence.

    Args:
        data: As it came.
        subject: What it has to be about.
        exchange: As the asker knows it.
        terms: What counts.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: It does not hold, is about another key, or does not count in this consortium.
    """
    evidence = parse_evidence(data)
    if evidence.kind is not subject.kind or evidence.public_key != subject.public_key:
        raise _another_key()
    if subject.kind is KeyKind.TPM:
        policy = Policy(terms.stores, terms.vouched_eks)
        candidate = appraise_evidence(evidence, exchange, policy, now_s=now_s)
        names = candidate.ek.name, candidate.node_key.name
        if not hmac.compare_digest(b"".join(names), subject.ek_name + subject.key_name):
            raise _another_key()
        _check_admitted(subject.kind, candidate.evidence, terms)
        return Unconfirmed(candidate, _maker(evidence))
    if subject.ek_name or subject.key_name != hashlib.sha256(subject.public_key).digest():
        raise _another_key()
    qualifying_data = exchange.qualifying_data(subject.ek_name, subject.key_name)
    root = _root(evidence, qualifying_data, terms, now_s)
    _check_admitted(root.kind, root.evidence, terms)
    return Finding(root, b"", _maker(evidence))


def confirm(unconfirmed: Unconfirmed, secret: bytes, answer: bytes) -> Finding:
    """Check a TPM's answer to the credential made for it.

    Args:
        unconfirmed: The same that was challenged.
        secret: The same that was hidden in the credential.
        answer: The box's.

    Raises:
        PeerProtocolError: It is wrong.
    """
    appraisal = confirm_activation(unconfirmed.candidate, secret, answer)
    return Finding(RootKey(KeyKind.TPM, appraisal.public_key, appraisal.evidence), appraisal.ek_name, unconfirmed.maker)


def _root(evidence: Evidence, qualifying_data: bytes, terms: Terms, now_s: int) -> RootKey:
    if evidence.parts.keys() != _POSSESSION_ONLY:
        if evidence.kind is KeyKind.PIV:
            return appraise_piv(evidence, qualifying_data, terms.stores, now_s=now_s).root
        if evidence.kind is KeyKind.FIDO2:
            return appraise_fido2(evidence, qualifying_data, terms.stores, now_s=now_s).root
    fido2 = FIDO2Terms(NODE_RP_ID) if evidence.kind is KeyKind.FIDO2 else None
    root = RootKey(evidence.kind, evidence.public_key, EvidenceClass.NONE, fido2)
    verify_possession(evidence, root, qualifying_data)
    return root


def _check_admitted(kind: KeyKind, evidence: EvidenceClass, terms: Terms) -> None:
    simulated = kind is KeyKind.SOFTWARE or evidence is EvidenceClass.TEST
    if kind not in terms.kinds or (simulated and not terms.is_test):
        raise _not_admitted(f"keys of the kind {kind.value} do not count here")
    if evidence < terms.minimum:
        raise _not_admitted(
            f"its evidence is of the class {evidence.name.lower()}, and {terms.minimum.name.lower()} is the least"
        )


def _maker(evidence: Evidence) -> str:
    shown = next((evidence.parts[name] for name in _SHOWS_MAKER if evidence.parts.get(name)), None)
    if shown is None:
        return ""
    name: x509.Name = parse_certificate(shown).issuer
    return "".join(letter if letter.isprintable() else " " for letter in name.rfc4514_string())[:200]


def _another_key() -> PeerProtocolError:
    return PeerProtocolError(
        "appraisal.another_key",
        "A box's evidence is about another key than the one that it began to enrol.",
        next_step="It is not enrolled. Begin the enrolment anew at the box.",
    )


def _not_admitted(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "appraisal.not_admitted",
        f"The box's key is not admitted to this consortium: {what}.",
        next_step="Use a key that the consortium admits, or ask its operator.",
    )
