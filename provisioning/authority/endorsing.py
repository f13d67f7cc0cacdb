"""The hospital's own look at a box, before its key puts the box on record: no word of the registrar is taken for it.

The registrar only carries what box and hospital say to each other. Without a person, a box is endorsed only if it
proves a token that this hospital's own key issued, once; for every other one a person compares the box's words.

    GET  /v1/sites/<site>/enrolments                     -> {"enrolments": [Waiting, ...]}
    POST /v1/sites/<site>/enrolments/<id>/exchange       {"asker_key", "nonce"}
    POST /v1/sites/<site>/enrolments/<id>/credential     {"blob", "encrypted_seed"}
    POST /v1/sites/<site>/enrolments/<id>/refusal        {"sentence", "next_step"}
    POST /v1/sites/<site>/metadata                       {"metadata", "targets": {path: bytes}}
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from securesystemslib.signer import Signer

from agent.attestation.appraise import challenge
from agent.attestation.binding import Exchange
from agent.attestation.enrolling import ENDORSEMENT_LABEL, token_proof
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.ids import SiteID
from agent.core.validation import explain_invalid
from agent.statements.roots import KeyKind, key_id, load_public_key
from agent.trust.fingerprint import box_words
from agent.trust.peers import node_name
from agent.trust.records import FIDO2Record, NodeFile, public_pem
from agent.trust.repository import TrustRepository
from provisioning.authority.appraisal import Finding, Subject, Terms, Unconfirmed, appraise, confirm
from provisioning.authority.signers import elliptic_key
from provisioning.authority.site import SiteDesk
from provisioning.authority.site_office import SiteOffice, opened_office
from provisioning.authority.site_repository import SitePlace
from provisioning.tokens.state import KeptToken, SiteTokenFiles, UsedTokenFiles
from provisioning.tokens.token import RandomBytes

MAX_WAITING: Final = 1024
MAX_AT_ONCE: Final = 32
"""Boxes endorsed with one signature; each lists three files."""
NONCE_BYTES: Final = 32
SECRET_BYTES: Final = 32

_log = structlog.get_logger(__name__)


_Bytes = Annotated[bytes, BeforeValidator(decode_bytes), Field(max_length=4 << 20)]


class WaitingState(StrEnum):
    """How far an enrolment is that waits for its hospital."""

    APPRAISED = "appraised"
    EXCHANGED = "exchanged"
    EVIDENCED = "evidenced"
    CREDENTIALED = "credentialed"
    ANSWERED = "answered"


class Waiting(BaseModel):
    """One box that waits for its hospital, as the registrar tells it; none of it is believed.

    Args:
        enrolment: The registrar's name for it.
        state: How far it is.
        token: Id of its token, hex.
        kind: What holds its key.
        public_key: SubjectPublicKeyInfo (DER).
        link_key: SubjectPublicKeyInfo (DER) of what it authenticates with at the SuperLink.
        ek_name: Name of its TPM's endorsement key.
        key_name: Name of its key.
        nonce: Of the asking that it answered; empty before it did.
        evidence: What it showed for that.
        proof: Of the token.
        answer: To the credential.
    """

    model_config = ConfigDict(frozen=True)

    enrolment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    state: WaitingState
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    kind: KeyKind
    public_key: _Bytes
    link_key: _Bytes
    ek_name: _Bytes
    key_name: _Bytes
    nonce: _Bytes = b""
    evidence: _Bytes = b""
    proof: _Bytes = b""
    answer: _Bytes = b""

    @property
    def subject(self) -> Subject:
        """What evidence has to be about."""
        return Subject(self.kind, self.public_key, self.ek_name, self.key_name)

    @property
    def key_id(self) -> str:
        """SHA-256 of its public key, hex."""
        return hashlib.sha256(self.public_key).hexdigest()

    @property
    def words(self) -> str:
        """What the box shows on its screen, if it is this one."""
        return box_words(self.ek_name, self.key_name, self.link_key)

    @property
    def claim(self) -> tuple[str, Subject, bytes]:
        """Who it says to be, and by which token: what was decided about one claim says nothing about another."""
        return self.token, self.subject, self.link_key


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)

    enrolments: Annotated[tuple[Waiting, ...], Field(max_length=MAX_WAITING)]


class Verdict(StrEnum):
    """What a person says of a box whose token is not enough."""

    ENDORSE = "endorse"
    REFUSE = "refuse"
    LATER = "later"


Decide = Callable[[Waiting], Verdict]
"""Shows a person the box's kind and words, and asks."""


def decide_later(_: Waiting) -> Verdict:
    """Nobody is there to ask."""
    return Verdict.LATER


@dataclass(slots=True)
class _Talk:
    """One exchange of ours with a box; it lives in memory only: after a restart the box is asked anew.

    Args:
        nonce: (32,), ours.
        claim: What it was begun with.
        unconfirmed: Its TPM's evidence.
        secret: (32,), hidden in the credential.
    """

    nonce: bytes
    claim: tuple[str, Subject, bytes]
    unconfirmed: Unconfirmed | None = None
    secret: bytes = field(default=b"", repr=False)


class EndorsingTool:
    """Looks at the boxes that wait for one hospital, and endorses those that may be.

    Args:
        office: The hospital's.
        kept: Tokens that its key issued.
        used: Which box used which of them.
        random_bytes: `secrets.token_bytes`.
        decide: Asked about every box whose token is not enough.
    """

    def __init__(
        self,
        office: SiteOffice,
        *,
        kept: SiteTokenFiles,
        used: UsedTokenFiles,
        random_bytes: RandomBytes,
        decide: Decide = decide_later,
    ) -> None:
        self._office = office
        self._site = office.site
        self._asker_key = key_id(elliptic_key(office.signer.public_key))
        self._kept = kept
        self._used = used
        self._random_bytes = random_bytes
        self._decide = decide
        self._talks: dict[str, _Talk] = {}
        self._found: list[tuple[Waiting, Finding]] = []
        self._approved: set[tuple[str, tuple[str, Subject, bytes]]] = set()

    def prepare(self) -> None:
        """Sign the hospital's role where it never did, or where what it signed runs out.

        Raises:
            SecureHealthError: The registrar or a key's device does not answer, or the key is not the hospital's.
        """
        self._office.copy.refresh()
        if self._office.desk.needs_renewal:
            self._office.publish(SiteDesk.renew)
            _log.info("site_signed_anew", site=self._site)

    def look(self) -> int:
        """Take every waiting box one step further.

        Returns:
            How many boxes wait; the caller looks again soon while there are any.

        Raises:
            NetworkError: The registrar does not answer.
            PeerProtocolError: Its list or its repository does not hold; no box is judged by that.
            OperatorError: It refuses this hospital.
        """
        waiting = self._list()
        self._found = []
        if waiting:
            self._office.copy.refresh()
        for name in self._talks.keys() - {each.enrolment for each in waiting}:
            del self._talks[name]
        for each in waiting:
            try:
                self._attend(each)
            except NetworkError:
                raise
            except PeerProtocolError as error:
                self._refuse(each, error)
            except SecureHealthError as error:
                _log.warning("endorsement_delayed", enrolment=each.enrolment, error=error)
        for start in range(0, len(self._found), MAX_AT_ONCE):
            try:
                self._endorse(self._found[start : start + MAX_AT_ONCE])
            except OperatorError as error:
                _log.warning("endorsement_delayed", site=self._site, error=error)  # the next look comes to it again
        return len(waiting)

    def _list(self) -> tuple[Waiting, ...]:
        try:
            return _Answer.model_validate_json(self._office.line.call("GET", "/enrolments")).enrolments
        except ValidationError as error:
            raise PeerProtocolError(
                "endorse.bad_answer",
                f"The registrar's list of waiting boxes cannot be read: {explain_invalid(error, whole='list')}.",
                next_step="Use the tool of the registrar's own release.",
            ) from error

    def _attend(self, each: Waiting) -> None:
        talk = self._talks.get(each.enrolment)
        if talk is None or talk.claim != each.claim:
            if self._may_begin(each):
                self._ask(each)
        elif each.state is WaitingState.EVIDENCED:
            self._take_evidence(each, talk)
        elif each.state is WaitingState.ANSWERED:
            self._take_answer(each, talk)

    def _may_begin(self, each: Waiting) -> bool:
        """Whether the box's token, or a person, says that it may be asked."""
        kept = self._kept.find(each.token)
        if kept is not None:
            self._check_token(kept, each)
            return True
        if (each.enrolment, each.claim) in self._approved:
            return True
        verdict = self._decide(each)
        if verdict is Verdict.REFUSE:
            raise PeerProtocolError(
                "endorse.person_refused",
                f"{self._site} did not recognise the box by its words.",
                next_step="Compare the words on the box's screen with those that the hospital's operator sees.",
            )
        if verdict is Verdict.ENDORSE:
            self._approved.add((each.enrolment, each.claim))
        return verdict is Verdict.ENDORSE

    def _check_token(self, kept: KeptToken, each: Waiting) -> None:
        user = self._used.find(kept.id)
        if user is not None and user != each.key_id:
            raise PeerProtocolError(
                "endorse.token_used",
                "The enrolment token was used by another box.",
                next_step=f"Ask {self._site} for a new token; tell it if no other box was to have this one.",
            )
        if user is None and self._now_s() >= kept.expires_s:
            raise PeerProtocolError(
                "endorse.token_expired",
                "The enrolment token has expired.",
                next_step=f"Ask {self._site} for a new token.",
            )
        if kept.ek_digest is not None and hashlib.sha256(each.ek_name).hexdigest() != kept.ek_digest:
            raise PeerProtocolError(
                "endorse.other_box",
                "The enrolment token was made for another box.",
                next_step="Use it on the box whose label it names.",
            )

    def _ask(self, each: Waiting) -> None:
        talk = _Talk(self._random_bytes(NONCE_BYTES), each.claim)
        self._post(each, "exchange", {"asker_key": self._asker_key, "nonce": encode_bytes(talk.nonce)})
        self._talks[each.enrolment] = talk

    def _take_evidence(self, each: Waiting, talk: _Talk) -> None:
        if each.nonce != talk.nonce:
            return  # an answer to an asking before this one
        snapshot = self._office.copy.current()
        exchange = Exchange(
            ENDORSEMENT_LABEL, self._asker_key, snapshot.root_digest, each.token, self._site, talk.nonce
        )
        self._check_proof(each, exchange)
        terms = Terms.of(snapshot)
        kept = self._kept.find(each.token)
        if kept is not None and kept.ek_digest is not None:
            terms = terms.vouching(each.ek_name)
        found = appraise(each.evidence, each.subject, exchange, terms, now_s=self._now_s())
        if isinstance(found, Finding):
            self._accept(each, found)
            return
        talk.unconfirmed, talk.secret = found, self._random_bytes(SECRET_BYTES)
        credential = challenge(found.candidate, talk.secret, random_bytes=self._random_bytes)
        sent = {"blob": encode_bytes(credential.blob), "encrypted_seed": encode_bytes(credential.encrypted_seed)}
        self._post(each, "credential", sent)

    def _check_proof(self, each: Waiting, exchange: Exchange) -> None:
        kept = self._kept.find(each.token)
        if kept is None:
            return  # a person compared the box's words
        data = exchange.qualifying_data(each.ek_name, each.key_name)
        proof = token_proof(bytes.fromhex(kept.secret), data, each.link_key)
        if not hmac.compare_digest(proof, each.proof):
            raise PeerProtocolError(
                "endorse.no_proof",
                "Whoever answers does not hold the enrolment token that it names.",
                next_step=f"It is not enrolled. {self._site} and the consortium look at the registrar's log.",
            )

    def _take_answer(self, each: Waiting, talk: _Talk) -> None:
        if talk.unconfirmed is None or each.nonce != talk.nonce:
            return
        self._accept(each, confirm(talk.unconfirmed, talk.secret, each.answer))

    def _accept(self, each: Waiting, finding: Finding) -> None:
        """All is shown: the box is endorsed at the end of this look, together with the others of it."""
        record = self._office.copy.current().sites.get(self._site)
        if record is not None and each.key_id in record.revoked:
            raise PeerProtocolError(
                "endorse.revoked_key",
                f"{self._site} revoked this box's key, and it cannot come back.",
                next_step="Name another place for its key in its agent.toml (`?key=` of a TPM), then enrol it anew.",
            )
        kept = self._kept.find(each.token)
        if kept is not None:
            self._check_token(kept, each)
            self._used.add(kept.id, each.key_id)  # before anything is signed: a token lets in one box, whatever happens
        self._found.append((each, finding))

    def _endorse(self, found: Sequence[tuple[Waiting, Finding]]) -> None:
        """Sign for several boxes at once: each signature is one publication of the whole consortium."""
        nodes = [self._node(each, finding) for each, finding in found]
        self._office.publish(lambda desk: desk.endorse_all(nodes))
        for each, finding in found:
            self._talks.pop(each.enrolment, None)
            grade = finding.root.evidence.name
            _log.info("box_endorsed", site=self._site, node=node_name(each.key_id), evidence=grade)

    def _node(self, each: Waiting, finding: Finding) -> NodeFile:
        terms = finding.root.fido2
        return NodeFile(
            site=self._site,
            node=node_name(each.key_id),
            kind=each.kind,
            evidence=finding.root.evidence.name.lower(),
            public_key=public_pem(load_public_key(each.public_key)),
            link_key=public_pem(load_public_key(each.link_key)),
            ek_name=finding.ek_name.hex(),
            fido2=None
            if terms is None
            else FIDO2Record(rp_id=terms.rp_id, user_verified=terms.user_verified, count=terms.last_count),
            enrolled=self._office.clock.now(),
        )

    def _refuse(self, each: Waiting, error: SecureHealthError) -> None:
        _log.warning("box_refused", site=self._site, enrolment=each.enrolment, error=error)
        try:
            self._post(each, "refusal", {"sentence": error.sentence, "next_step": error.next_step})
        except OperatorError as late:
            _log.info("refusal_late", enrolment=each.enrolment, error=late)
        self._talks.pop(each.enrolment, None)

    def _post(self, each: Waiting, place: str, fields: Mapping[str, object]) -> None:
        self._office.line.call("POST", f"/enrolments/{each.enrolment}/{place}", json.dumps(fields).encode())

    def _now_s(self) -> int:
        return int(self._office.clock.now().timestamp())


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
        SecureHealthError: As `opened_office` says.
    """
    with opened_office(site, signer, place, clock, copy=place.trust, random_bytes=random_bytes) as office:
        yield EndorsingTool(
            office,
            kept=SiteTokenFiles(place.tokens),
            used=UsedTokenFiles(place.used),
            random_bytes=random_bytes,
            decide=decide(office.copy),
        )
