"""The box's side of the talk with registrar and hospital: what each asks is answered, until one says yes or no.

The registrar keeps how far an enrolment is, and the box does what that state asks of it, so that a box which lost its
memory goes on where it was. Whatever the registrar says, only the repository makes the box enrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.binding import Exchange
from agent.attestation.credential import Credential, activation_answer
from agent.attestation.enrolling import ENDORSEMENT_LABEL, ENROLMENT_LABEL, token_proof
from agent.attestation.evidence import Evidence, encode_evidence
from agent.attestation.possession import POSSESSION_TYPE
from agent.core.base64url import encode_bytes
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.enrolment.line import (
    Patience,
    RegistrarLine,
    Request,
    bad_answer,
    encode_fields,
    parse_answer,
    plain_text,
)
from agent.enrolment.messages import EvidenceAnswer, Opened, Situation, State
from agent.enrolment.progress import Progress, Step, Tell
from agent.identity.key import HardwareKey
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import key_id, public_key_bytes
from agent.trust.fingerprint import box_words
from agent.trust.records import parse_public_pem
from agent.trust.snapshot import TrustSnapshot
from agent.trust.token import Token, registrar_secret, site_secret

MAX_PROOFS: Final = 16
"""How often the box's key is asked in one go: a registrar that never has enough must not wear a person out."""
POLL_FIRST_S: Final = 0.2
POLL_CAP_S: Final = 2.0
_POLL_GROWTH: Final = 1.3


@dataclass(frozen=True, slots=True)
class Box:
    """What is enrolled.

    Args:
        key: The box's key.
        link: What it authenticates with at the SuperLink (`agent.identity.link`).
    """

    key: HardwareKey
    link: ec.EllipticCurvePublicKey

    def fields(self, ek_name: bytes, key_name: bytes) -> dict[str, str]:
        """What a registrar is told of the box.

        Args:
            ek_name: Of the key's evidence names, which a TPM is asked for once only.
            key_name: The other one.
        """
        return {
            "kind": self.key.kind.value,
            "public_key": encode_bytes(public_key_bytes(self.key.public_key())),
            "link_key": encode_bytes(public_key_bytes(self.link)),
            "ek_name": encode_bytes(ek_name),
            "key_name": encode_bytes(key_name),
        }


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a talk is about.

    Args:
        token: Verified.
        snapshot: The consortium's repository, verified.
        by_site: Whether the hospital itself issued the token, so that its tool endorses without a person.
    """

    token: Token
    snapshot: TrustSnapshot
    by_site: bool

    def exchange(self, label: str, asker_key: str, nonce: bytes) -> Exchange:
        """One asking for evidence."""
        token = self.token
        return Exchange(label, asker_key, self.snapshot.root_digest, token.id.hex(), token.site, nonce)


class Conversation:
    """One enrolment's talk.

    Args:
        line: To the registrar, verified.
        patience: For a network that is down.
        tell: Told how far it is.
        box: What is enrolled.
        occasion: What it is about.
    """

    def __init__(self, line: RegistrarLine, patience: Patience, tell: Tell, box: Box, occasion: Occasion) -> None:
        self._line = line
        self._patience = patience
        self._tell = tell
        self._box = box
        self._occasion = occasion
        self._secret = encode_bytes(registrar_secret(occasion.token))
        self._names = box.key.evidence_names()
        self._link_key = public_key_bytes(box.link)
        self._nonce = b""
        self._path = ""
        self._proofs = 0
        # All that the box ever does, by the registrar's state; in every other state it waits.
        self._actions: Mapping[State, Callable[[Situation], None]] = {
            State.OPEN: self._prove_to_registrar,
            State.CHALLENGED: self._prove_to_registrar,  # a box that forgot its challenge gets another one
            State.EXCHANGED: self._prove_to_site,
            State.CREDENTIALED: self._answer_site,
            State.REFUSED: self._refuse,
        }

    def open(self) -> None:
        """Make the registrar know this box and this token; the same again where it does already.

        Raises:
            OperatorError: It refuses.
        """
        self._tell(Progress(Step.REGISTRAR, "The registrar is asked to enrol this box."))
        fields = {"token": encode_bytes(self._occasion.token.id), "secret": self._secret}
        fields |= self._box.fields(*self._names)
        answer = self._call(Step.REGISTRAR, Request("POST", "/v1/enrolments", encode_fields(fields)))
        opened = parse_answer(Opened, answer)
        self._nonce = opened.nonce
        self._path = f"/v1/enrolments/{opened.enrolment}"

    def run(self) -> None:
        """Answer whatever is asked, until the registrar says that the box is enrolled.

        Raises:
            OperatorError: Registrar or hospital refuse (`enrolment.refused`), or a person is needed.
            PeerProtocolError: Somebody broke the protocol.
            EnrolmentStoppedError: Told to stop.
        """
        before: State | None = None
        pause_s = POLL_FIRST_S
        while True:
            situation = parse_answer(Situation, self._call(self._step(before), Request("GET", self._path)))
            if situation.state is State.ENROLLED:
                return
            if situation.state is not before:
                before, pause_s = situation.state, POLL_FIRST_S
                self._say(situation.state)
            if self._act(situation):
                continue
            self._patience.pause(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, POLL_CAP_S)

    def _act(self, situation: Situation) -> bool:
        """Do what the state asks; returns whether that was anything."""
        act = self._actions.get(situation.state)
        if act is None:
            return False
        try:
            act(situation)
        except OperatorError as error:
            # The hospital's tool began anew while this box answered: the next look says what is asked now.
            if error.details.get("registrar_code") != "enrol.wrong_state":
                raise
            return False
        return True

    def _prove_to_registrar(self, _: Situation) -> None:
        asker = key_id(parse_public_pem(self._occasion.snapshot.consortium.registrar_key))
        qualifying_data = self._qualifying_data(ENROLMENT_LABEL, asker, self._nonce)
        evidence = self._evidence(qualifying_data, "the registrar", Step.REGISTRAR)
        request = Request("PUT", f"{self._path}/evidence", evidence, "application/cbor")
        answer = parse_answer(EvidenceAnswer, self._call(Step.REGISTRAR, request))
        if answer.credential is not None:
            self._activate("activation", answer.credential.credential, qualifying_data, Step.REGISTRAR)

    def _prove_to_site(self, situation: Situation) -> None:
        qualifying_data = self._site_qualifying_data(situation)
        proof = token_proof(site_secret(self._occasion.token), qualifying_data, self._link_key)
        evidence = self._evidence(qualifying_data, self._occasion.token.site, Step.SITE)
        fields = {"evidence": encode_bytes(evidence), "proof": encode_bytes(proof)}
        self._call(Step.SITE, Request("PUT", f"{self._path}/endorsement/evidence", encode_fields(fields)))

    def _answer_site(self, situation: Situation) -> None:
        if situation.credential is None:
            raise bad_answer("a credential that is not there")
        qualifying_data = self._site_qualifying_data(situation)
        self._activate("endorsement/activation", situation.credential.credential, qualifying_data, Step.SITE)

    def _refuse(self, situation: Situation) -> None:
        refusal = situation.refusal
        raise OperatorError(
            "enrolment.refused",
            f"The enrolment was refused: {plain_text(refusal.sentence) if refusal else 'no reason was given'}",
            next_step=plain_text(refusal.next_step) if refusal else "Ask the consortium why.",
        )

    def _site_qualifying_data(self, situation: Situation) -> bytes:
        if situation.exchange is None:
            raise bad_answer("a question of the hospital that is not there")
        # Who asks must be the hospital itself, by the repository: evidence made for another is of no use to it.
        record = self._occasion.snapshot.sites[self._occasion.token.site]
        if situation.exchange.asker_key not in {key_id(key) for key in record.keys}:
            raise PeerProtocolError(
                "enrolment.not_the_site",
                f"Somebody asks for evidence in the name of {record.site}, with a key that is not its own.",
                next_step="Nothing was shown to it. Tell the consortium and the hospital's operator.",
            )
        return self._qualifying_data(ENDORSEMENT_LABEL, situation.exchange.asker_key, situation.exchange.nonce)

    def _qualifying_data(self, label: str, asker_key: str, nonce: bytes) -> bytes:
        return self._occasion.exchange(label, asker_key, nonce).qualifying_data(*self._names)

    def _evidence(self, qualifying_data: bytes, asker: str, step: Step) -> bytes:
        self._proofs += 1
        if self._proofs > MAX_PROOFS:
            raise PeerProtocolError(
                "enrolment.never_enough",
                "The registrar asks for the same evidence over and over.",
                next_step="Ask the consortium to look at its registrar's log, then try again.",
            )
        self._tell(Progress(step, f"This box's key proves itself to {asker}."))
        return encode_evidence(gather_evidence(self._box.key, qualifying_data))

    def _activate(self, place: str, credential: Credential, qualifying_data: bytes, step: Step) -> None:
        answer = activation_answer(self._box.key.activate(credential), qualifying_data)
        fields = encode_fields({"answer": encode_bytes(answer)})
        self._call(step, Request("PUT", f"{self._path}/{place}", fields))

    def _call(self, step: Step, request: Request) -> object:
        authorised = Request(request.method, request.path, request.body, request.content_type, self._secret)
        return self._patience.insist(step, lambda: self._line.call(authorised))

    def _step(self, state: State | None) -> Step:
        return Step.REGISTRAR if state in {None, State.OPEN, State.CHALLENGED} else Step.SITE

    def _say(self, state: State) -> None:
        if state is not State.APPRAISED:
            return
        site, words = self._occasion.token.site, box_words(*self._names, self._link_key)
        if self._occasion.by_site:
            self._tell(Progress(Step.SITE, f"The registrar accepts this box; {site}'s own tool looks at it now."))
        else:
            next_step = f"{site}'s operator compares these words with those on the screen: {words}."
            self._tell(Progress(Step.SITE, f"The registrar accepts this box; {site} has to endorse it.", next_step))


def gather_evidence(key: HardwareKey, qualifying_data: bytes) -> Evidence:
    """All that a key can show: its maker's word where it has one, else that it is in this box's hands.

    Raises:
        SecureHealthError: The key is gone, refuses, or wants a person who is not there.
    """
    if key.capabilities.attests:
        try:
            return key.attest(qualifying_data)
        except HardwareError as error:
            if error.code != "identity.no_evidence":
                raise
    possession = key.sign(pre_authentication_encoding(POSSESSION_TYPE, qualifying_data))
    return Evidence(key.kind, public_key_bytes(key.public_key()), {"possession": possession})
