"""One enrolment, from a token to a box on record: a state machine without I/O.

    open -> challenged -> appraised      by what the box shows to the registrar
         -> exchanged -> evidenced -> credentialed -> answered   by what it shows to its hospital, through here
         -> endorsed -> enrolled         when the hospital's signed record of it stands in the repository

Every function takes an enrolment and gives the one after it. What comes twice, because an answer was lost, changes
nothing; what comes in a state that has no use for it is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum, auto
from types import MappingProxyType
from typing import Final

from agent.attestation.appraise import challenge
from agent.attestation.binding import Exchange
from agent.attestation.credential import Credential, RandomBytes
from agent.attestation.enrolling import ENROLMENT_LABEL
from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, KeyKind, load_public_key
from agent.trust.records import NodeFile, parse_public_pem
from provisioning.authority.appraisal import Finding, Subject, Terms, Unconfirmed, appraise, confirm
from provisioning.tokens.token import TokenEntry

SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 32


class State(StrEnum):
    """How far an enrolment is."""

    OPEN = auto()
    CHALLENGED = auto()
    APPRAISED = auto()
    EXCHANGED = auto()
    EVIDENCED = auto()
    CREDENTIALED = auto()
    ANSWERED = auto()
    ENDORSED = auto()
    ENROLLED = auto()
    REFUSED = auto()


class Event(StrEnum):
    """What moves it."""

    CHALLENGE = auto()  # evidence of a TPM held; a credential was made
    APPRAISE = auto()  # all that the registrar wants is shown
    EXCHANGE = auto()  # the hospital asks
    SHOW = auto()  # the box answers it with evidence
    CREDENTIAL = auto()  # the hospital's own credential for a TPM
    ANSWER = auto()  # the box opened it
    ENDORSE = auto()  # the hospital's signed record stands in the repository
    REGISTER = auto()  # the SuperLink lets the box in
    REFUSE = auto()


WAITING: Final = (State.APPRAISED, State.EXCHANGED, State.EVIDENCED, State.CREDENTIALED, State.ANSWERED)
"""For their hospital to endorse them."""
TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.OPEN, Event.CHALLENGE): State.CHALLENGED,
        (State.CHALLENGED, Event.CHALLENGE): State.CHALLENGED,
        (State.OPEN, Event.APPRAISE): State.APPRAISED,
        (State.CHALLENGED, Event.APPRAISE): State.APPRAISED,
        # A hospital's tool that lost its memory asks anew.
        (State.APPRAISED, Event.EXCHANGE): State.EXCHANGED,
        (State.EXCHANGED, Event.EXCHANGE): State.EXCHANGED,
        (State.EVIDENCED, Event.EXCHANGE): State.EXCHANGED,
        (State.CREDENTIALED, Event.EXCHANGE): State.EXCHANGED,
        (State.ANSWERED, Event.EXCHANGE): State.EXCHANGED,
        (State.EXCHANGED, Event.SHOW): State.EVIDENCED,
        (State.EVIDENCED, Event.CREDENTIAL): State.CREDENTIALED,
        (State.CREDENTIALED, Event.ANSWER): State.ANSWERED,
        # The hospital speaks for itself: how much it wants to see before it signs is its own affair.
        **{(state, Event.ENDORSE): State.ENDORSED for state in WAITING},
        (State.ENDORSED, Event.REGISTER): State.ENROLLED,
        **{(state, Event.REFUSE): State.REFUSED for state in (State.OPEN, State.CHALLENGED, *WAITING)},
    }
)
"""Every move that there is."""
FINAL: Final = frozenset({State.ENROLLED, State.REFUSED})
_PAST_REGISTRAR: Final = frozenset(State) - {State.OPEN, State.CHALLENGED, State.REFUSED}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an enrolment came to nothing, in plain words."""

    sentence: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Opening:
    """What a box says when it begins.

    Args:
        token: Id, hex.
        secret: (32,), proves the token to the registrar.
        subject: Its key.
        link_key: SubjectPublicKeyInfo (DER) of what it authenticates with at the SuperLink.
    """

    token: str
    secret: bytes = field(repr=False)
    subject: Subject
    link_key: bytes


@dataclass(frozen=True, slots=True)
class SiteTalk:
    """What a hospital's own tool and a box say to each other.

    Args:
        asker_key: Id of the hospital's key that asks; empty before it does.
        nonce: (32,), the tool's.
        evidence: The box's.
        proof: (32,), the box's, of the token.
        credential: The tool's.
        answer: (32,), the box's, to it.
    """

    asker_key: str = ""
    nonce: bytes = b""
    evidence: bytes = field(default=b"", repr=False)
    proof: bytes = b""
    credential: Credential | None = None
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One box's enrolment.

    Args:
        id: Its name.
        token: Id of the token, hex; each token has one enrolment.
        site: The hospital.
        subject: The box's key.
        link_key: SubjectPublicKeyInfo (DER).
        nonce: (32,), what evidence for the registrar is bound to.
        opened_s: When it began.
        state: How far it is.
        revision: Rises with every change.
        evidence: The box's, for the registrar.
        secret: (32,), hidden in `credential`.
        credential: For a TPM.
        grade: What the registrar found.
        talk: With the hospital.
        refusal: Why it was refused.
        superlink_node: Its id at the SuperLink.
    """

    id: str
    token: str
    site: SiteID
    subject: Subject
    link_key: bytes
    nonce: bytes
    opened_s: int
    state: State = State.OPEN
    revision: int = 0
    evidence: bytes = field(default=b"", repr=False)
    secret: bytes = field(default=b"", repr=False)
    credential: Credential | None = None
    grade: EvidenceClass = EvidenceClass.NONE
    talk: SiteTalk = SiteTalk()
    refusal: Refusal | None = None
    superlink_node: str = ""

    @property
    def key_id(self) -> str:
        """SHA-256 of the box's public key, hex."""
        return hashlib.sha256(self.subject.public_key).hexdigest()


@dataclass(frozen=True, slots=True)
class Occasion:
    """What the registrar knows of the consortium when evidence comes.

    Args:
        registrar_key: Id of the key that names the registrar.
        consortium: Digest of its root, hex.
        terms: What counts; a box that its hospital's own token names among them.
        now_s: Seconds since 1970.
    """

    registrar_key: str
    consortium: str
    terms: Terms
    now_s: int

    def exchange(self, enrolment: Enrolment) -> Exchange:
        """The registrar's asking."""
        return Exchange(
            ENROLMENT_LABEL, self.registrar_key, self.consortium, enrolment.token, enrolment.site, enrolment.nonce
        )


def check_token(entry: TokenEntry | None, opening: Opening, now_s: int, *, is_open: bool) -> TokenEntry:
    """Check that a box may begin with a token, or go on.

    Args:
        entry: What the registrar knows of the token; None for nothing.
        opening: What the box says.
        now_s: Seconds since 1970.
        is_open: Whether the token began an enrolment already: its date is no more than a date then.

    Raises:
        OperatorError: It may not.
    """
    if entry is None or not proves_token(entry, opening.secret):
        # One answer for both, so that nobody learns which tokens there are.
        raise OperatorError(
            "enrol.unknown_token",
            "The registrar does not know this enrolment token.",
            next_step="Ask the hospital's operator for a new token.",
        )
    if not is_open and now_s >= entry.expires_s:
        raise OperatorError(
            "enrol.token_expired",
            "The enrolment token has expired.",
            next_step="Ask the hospital's operator for a new token.",
        )
    if entry.ek_digest is not None and hashlib.sha256(opening.subject.ek_name).hexdigest() != entry.ek_digest:
        raise OperatorError(
            "enrol.other_box",
            "The enrolment token was made for another box than this one.",
            next_step="Use it on the box whose label it names, or ask the consortium for one for this box.",
        )
    return entry


def proves_token(entry: TokenEntry, secret: bytes) -> bool:
    """Whether `secret` is the registrar's secret of the token."""
    return hmac.compare_digest(hashlib.sha256(secret).hexdigest(), entry.secret_digest)


def begin(entry: TokenEntry, opening: Opening, *, name: str, nonce: bytes, now_s: int) -> Enrolment:
    """A new enrolment.

    Raises:
        PeerProtocolError: A key is none on P-256 or P-384.
    """
    for key in (opening.subject.public_key, opening.link_key):
        load_public_key(key)
    return Enrolment(name, entry.id, SiteID(entry.site), opening.subject, opening.link_key, nonce, now_s)


def check_same_box(enrolment: Enrolment, opening: Opening) -> None:
    """Check that the enrolment which a token began is this box's.

    Raises:
        OperatorError: Another box used the token (`enrol.token_used`).
    """
    if (enrolment.subject, enrolment.link_key) != (opening.subject, opening.link_key):
        raise OperatorError(
            "enrol.token_used",
            "The enrolment token was used by another box, or by this one with another key.",
            next_step="Ask the hospital's operator for a new token; say if no other box was to have this one.",
        )


def take_evidence(enrolment: Enrolment, data: bytes, occasion: Occasion, *, random_bytes: RandomBytes) -> Enrolment:
    """The box shows its key to the registrar.

    Raises:
        PeerProtocolError: What it shows does not hold.
        OperatorError: It was refused already.
    """
    if enrolment.state in _PAST_REGISTRAR:
        return enrolment
    event = Event.APPRAISE if enrolment.subject.kind is not KeyKind.TPM else Event.CHALLENGE
    after = _moved(enrolment, event)
    if data == enrolment.evidence:  # the answer was lost: the same credential again, lest two of them race
        return enrolment
    found = appraise(data, enrolment.subject, occasion.exchange(enrolment), occasion.terms, now_s=occasion.now_s)
    if isinstance(found, Finding):
        return replace(after, grade=found.root.evidence)
    secret = random_bytes(SECRET_BYTES)
    credential = challenge(found.candidate, secret, random_bytes=random_bytes)
    return replace(after, evidence=data, secret=secret, credential=credential)


def take_activation(enrolment: Enrolment, answer: bytes, occasion: Occasion) -> Enrolment:
    """The box opened the registrar's credential.

    Raises:
        PeerProtocolError: It did not.
        OperatorError: Nothing was to be opened.
    """
    if enrolment.state in _PAST_REGISTRAR:
        return enrolment
    if enrolment.state is not State.CHALLENGED:
        raise _wrong_state(enrolment)
    # Appraised anew rather than remembered: nothing but the evidence itself says what it is worth.
    exchange = occasion.exchange(enrolment)
    found = appraise(enrolment.evidence, enrolment.subject, exchange, occasion.terms, now_s=occasion.now_s)
    finding = confirm(found, enrolment.secret, answer) if isinstance(found, Unconfirmed) else found
    after = _moved(enrolment, Event.APPRAISE)
    return replace(after, grade=finding.root.evidence, evidence=b"", secret=b"", credential=None)


def ask(enrolment: Enrolment, asker_key: str, nonce: bytes) -> Enrolment:
    """The hospital's tool asks for evidence of its own; a new asking ends the one before.

    Raises:
        OperatorError: It is too early, or too late.
    """
    if (enrolment.talk.asker_key, enrolment.talk.nonce) == (asker_key, nonce):
        return enrolment
    return replace(_moved(enrolment, Event.EXCHANGE), talk=SiteTalk(asker_key, nonce))


def take_site_evidence(enrolment: Enrolment, data: bytes, proof: bytes) -> Enrolment:
    """The box answers its hospital; that is the hospital's to appraise.

    Raises:
        OperatorError: Nobody asked.
    """
    if (enrolment.talk.evidence, enrolment.talk.proof) == (data, proof):
        return enrolment
    after = _moved(enrolment, Event.SHOW)
    return replace(after, talk=replace(enrolment.talk, evidence=data, proof=proof))


def give_credential(enrolment: Enrolment, credential: Credential) -> Enrolment:
    """The hospital's own credential for the box's TPM.

    Raises:
        OperatorError: There is no evidence yet that it could be for.
    """
    if enrolment.talk.credential == credential:
        return enrolment
    return replace(_moved(enrolment, Event.CREDENTIAL), talk=replace(enrolment.talk, credential=credential))


def take_site_answer(enrolment: Enrolment, answer: bytes) -> Enrolment:
    """The box opened its hospital's credential; that is the hospital's to confirm.

    Raises:
        OperatorError: Nothing was to be opened.
    """
    if enrolment.talk.answer == answer:
        return enrolment
    return replace(_moved(enrolment, Event.ANSWER), talk=replace(enrolment.talk, answer=answer))


def is_endorsed_by(enrolment: Enrolment, node: NodeFile) -> bool:
    """Whether a hospital's signed record is of this box, and lets it in as it asked."""
    wanted = (enrolment.site, enrolment.subject.kind, enrolment.subject.public_key, load_public_key(enrolment.link_key))
    return wanted == (node.site, node.kind, node.root.public_key, parse_public_pem(node.link_key))


def endorse(enrolment: Enrolment) -> Enrolment:
    """The hospital's signed record of the box stands in the repository.

    Raises:
        OperatorError: The registrar has not appraised the box.
    """
    return replace(_moved(enrolment, Event.ENDORSE), talk=SiteTalk())


def finish(enrolment: Enrolment, superlink_node: str) -> Enrolment:
    """The SuperLink lets the box in.

    Raises:
        OperatorError: It is not endorsed.
    """
    return replace(_moved(enrolment, Event.REGISTER), superlink_node=superlink_node)


def refuse(enrolment: Enrolment, refusal: Refusal) -> Enrolment:
    """The hospital refuses.

    Raises:
        OperatorError: It is too late.
    """
    if enrolment.refusal == refusal:
        return enrolment
    after = _moved(enrolment, Event.REFUSE)
    return replace(after, refusal=refusal, evidence=b"", secret=b"", credential=None, talk=SiteTalk())


def _moved(enrolment: Enrolment, event: Event) -> Enrolment:
    after = TRANSITIONS.get((enrolment.state, event))
    if after is None:
        raise _wrong_state(enrolment)
    return replace(enrolment, state=after)


def _wrong_state(enrolment: Enrolment) -> OperatorError:
    if enrolment.refusal is not None:
        return OperatorError("enrol.refused", enrolment.refusal.sentence, next_step=enrolment.refusal.next_step)
    return OperatorError(
        "enrol.wrong_state",
        f"The enrolment is {enrolment.state.value}, and has no use for this now.",
        next_step="Ask how far it is, and go on from there.",
    )
