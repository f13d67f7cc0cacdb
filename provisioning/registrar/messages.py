"""What boxes and hospitals send, parsed: every field has a bound, and bytes are base64url without padding."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.attestation.credential import Credential
from agent.attestation.evidence import MAX_EVIDENCE_BYTES
from agent.core.base64url import decode_bytes
from agent.core.errors import PeerProtocolError
from agent.core.validation import explain_invalid
from agent.statements.kinds import Hex32
from agent.statements.roots import KeyKind
from provisioning.authority.appraisal import Subject
from provisioning.registrar.challenge import Opening, Refusal

MAX_SITE_METADATA_BYTES: Final = 1 << 20
MAX_TARGET_BYTES: Final = 1 << 18
MAX_TARGETS: Final = 256


Digest = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=32, max_length=32)]
TokenID = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=8, max_length=8)]
Name = Annotated[bytes, BeforeValidator(decode_bytes), Field(max_length=66)]
PublicKey = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=1, max_length=512)]
Blob = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=1, max_length=2048)]
EvidenceBytes = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=1, max_length=MAX_EVIDENCE_BYTES)]
MetadataBytes = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=1, max_length=MAX_SITE_METADATA_BYTES)]
TargetBytes = Annotated[bytes, BeforeValidator(decode_bytes), Field(max_length=MAX_TARGET_BYTES)]
TargetPath = Annotated[str, Field(min_length=1, max_length=300)]
Envelope = Annotated[str, Field(min_length=1, max_length=7168)]
Sentence = Annotated[str, Field(max_length=1000)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeartbeatMessage(_Message):
    """POST /v1/heartbeats: two DSSE envelopes."""

    certificate: Envelope
    heartbeat: Envelope


class OpeningMessage(_Message):
    """POST /v1/enrolments."""

    token: TokenID
    secret: Digest = Field(repr=False)
    kind: KeyKind
    public_key: PublicKey
    link_key: PublicKey
    ek_name: Name
    key_name: Name

    @property
    def opening(self) -> Opening:
        """In the state machine's terms."""
        subject = Subject(self.kind, self.public_key, self.ek_name, self.key_name)
        return Opening(self.token.hex(), self.secret, subject, self.link_key)


class AnswerMessage(_Message):
    """The answer to a credential: PUT .../activation, PUT .../endorsement/activation."""

    answer: Digest


class SiteEvidenceMessage(_Message):
    """PUT .../endorsement/evidence."""

    evidence: EvidenceBytes
    proof: Digest


class ExchangeMessage(_Message):
    """POST /v1/sites/<site>/enrolments/<id>/exchange."""

    asker_key: Hex32
    nonce: Digest


class CredentialMessage(_Message):
    """POST /v1/sites/<site>/enrolments/<id>/credential."""

    blob: Blob
    encrypted_seed: Blob

    @property
    def credential(self) -> Credential:
        """As a TPM takes it."""
        return Credential(self.blob, self.encrypted_seed)


class RefusalMessage(_Message):
    """POST /v1/sites/<site>/enrolments/<id>/refusal."""

    sentence: Annotated[Sentence, Field(min_length=1)]
    next_step: Sentence = ""

    @property
    def refusal(self) -> Refusal:
        """In the state machine's terms."""
        return Refusal(self.sentence, self.next_step)


class MetadataMessage(_Message):
    """POST /v1/sites/<site>/metadata."""

    metadata: MetadataBytes
    targets: Annotated[dict[TargetPath, TargetBytes], Field(max_length=MAX_TARGETS)] = {}


class PairingMessage(_Message):
    """POST /v1/pairings."""

    secret: Digest = Field(repr=False)
    kind: KeyKind
    public_key: PublicKey
    link_key: PublicKey
    ek_name: Name
    key_name: Name

    @property
    def subject(self) -> Subject:
        """The box's key."""
        return Subject(self.kind, self.public_key, self.ek_name, self.key_name)


class NonceMessage(_Message):
    """PUT /v1/pairings/<id>/nonce."""

    nonce: Digest


class TypedMessage(_Message):
    """A technician's code, as typed."""

    code: Annotated[str, Field(min_length=1, max_length=40)]


class BrowserMessage(_Message):
    """What a browser's passkey answered (WebAuthn Level 3, 5.1.8: a credential's JSON)."""

    answer: dict[str, Any]


MessageT = TypeVar("MessageT", bound=BaseModel)


def parse_message(kind: type[MessageT], body: bytes) -> MessageT:
    """Parse a request's JSON.

    Args:
        kind: What it must be.
        body: No more bytes than the place takes.

    Raises:
        PeerProtocolError: It is something else (`registrar.bad_request`).
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise PeerProtocolError(
            "registrar.bad_request",
            f"The request cannot be read: {explain_invalid(error, whole='request')[:300]}.",
            next_step="Use the release that the consortium uses.",
        ) from error
