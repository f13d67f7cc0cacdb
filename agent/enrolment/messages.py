"""What the registrar answers, parsed: every field has a bound, and bytes are base64url without padding."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from agent.attestation.credential import Credential
from agent.core.base64url import decode_bytes
from agent.statements.kinds import Hex32


class State(StrEnum):
    """How far an enrolment is, as the registrar keeps it."""

    OPEN = "open"
    CHALLENGED = "challenged"
    APPRAISED = "appraised"
    EXCHANGED = "exchanged"
    EVIDENCED = "evidenced"
    CREDENTIALED = "credentialed"
    ANSWERED = "answered"
    ENDORSED = "endorsed"
    ENROLLED = "enrolled"
    REFUSED = "refused"


Nonce = Annotated[bytes, BeforeValidator(decode_bytes), Field(min_length=32, max_length=32)]
Blob = Annotated[bytes, BeforeValidator(decode_bytes), Field(max_length=2048)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Opened(_Answer):
    """The registrar knows this box and this token from now on.

    Args:
        enrolment: Its name for the enrolment.
        nonce: (32,), what the box's evidence is bound to.
    """

    enrolment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    nonce: Nonce


class CredentialAnswer(_Answer):
    """A secret for this box's TPM alone."""

    blob: Blob
    encrypted_seed: Blob

    @property
    def credential(self) -> Credential:
        """As the TPM takes it."""
        return Credential(self.blob, self.encrypted_seed)


class EvidenceAnswer(_Answer):
    """The registrar's word on evidence; a TPM has to open a credential yet."""

    credential: CredentialAnswer | None = None


class SiteExchange(_Answer):
    """The hospital's tool asks for evidence of its own.

    Args:
        asker_key: Id of the key of the hospital that asks.
        nonce: (32,), the tool's.
    """

    asker_key: Hex32
    nonce: Nonce


class Refused(_Answer):
    """Why an enrolment came to nothing."""

    sentence: Annotated[str, Field(max_length=1000)]
    next_step: Annotated[str, Field(max_length=1000)] = ""


class Situation(_Answer):
    """How far the enrolment is.

    Args:
        state: So far.
        exchange: What the hospital's tool asks, once it does.
        credential: The tool's secret for this box's TPM, once it made one.
        refusal: Why it was refused.
    """

    state: State
    exchange: SiteExchange | None = None
    credential: CredentialAnswer | None = None
    refusal: Refused | None = None
