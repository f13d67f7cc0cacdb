"""What a steward's key signs: exactly one study's approval or its withdrawal, or that a box may leave its consortium.

Every field stands in what is signed, so a signature counts for nothing else. Fields are written as
canonical JSON (RFC 8785) that begins with nothing another protocol signs: WebAuthn's challenge is its SHA-256; a
smartcard signs its DSSE pre-authentication encoding.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.kinds import Count, Hex32, Seconds

MAX_CHALLENGE_BYTES = 1 << 13
NodeText = Annotated[str, Field(min_length=1, max_length=200)]
Epsilon = Annotated[float, Field(gt=0, le=1e6)]


class Act(BaseModel):
    """What all acts of a steward name: where they count."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    payload_type: ClassVar[str]

    root_digest: Hex32
    site: IdentifierText
    node: NodeText

    def payload(self) -> bytes:
        """Canonical JSON of all fields (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> bytes:
        """SHA-256 of `payload`: WebAuthn's challenge, (32,)."""
        return hashlib.sha256(self.payload()).digest()

    def message(self) -> bytes:
        """What a smartcard signs, by ECDSA with its curve's own hash."""
        return pre_authentication_encoding(self.payload_type, self.payload())

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Parse a canonical payload.

        Raises:
            PeerProtocolError: It is none, or not in canonical form (`approval.bad_challenge`).
        """
        try:
            act = cls.model_validate_json(payload[: MAX_CHALLENGE_BYTES + 1])
        except ValidationError as error:
            raise _bad_challenge() from error
        if act.payload() != payload:
            raise _bad_challenge()
        return act


class _StudyAct(Act):
    """What acts about a study name beside."""

    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    sequence: Count


class Challenge(_StudyAct):
    """An approval.

    Args:
        label: Names what is signed.
        root_digest: The consortium's pinned root, hex.
        site: The hospital.
        node: The box.
        study: The study's id.
        study_digest: SHA-256 of study.json, hex.
        dataset: The data set's name in the hospital.
        dataset_digest: Of its catalog entry and bytes, hex (`agent.data.fingerprint`).
        epsilon: The whole study's privacy loss; None where its results are not bounded.
        sequence: Its number on this box; no number ever comes twice.
        not_after_s: Until when it counts, exclusive, in seconds since 1970.
    """

    payload_type: ClassVar[str] = "application/vnd.secur-e-health.approval.v1+json"

    label: Literal["secur-e-health/approval/1"] = "secur-e-health/approval/1"
    dataset_digest: Hex32
    epsilon: Epsilon | None
    not_after_s: Seconds


class WithdrawalChallenge(_StudyAct):
    """The withdrawal of the approval with this sequence; it holds for good."""

    payload_type: ClassVar[str] = "application/vnd.secur-e-health.withdrawal.v1+json"

    label: Literal["secur-e-health/withdrawal/1"] = "secur-e-health/withdrawal/1"


class UnenrolChallenge(Act):
    """That this box may leave its consortium.

    Args:
        label: Names what is signed.
        root_digest: The consortium's pinned root, hex.
        site: The hospital.
        node: The box.
        nonce: Random, made for this one asking, hex.
    """

    payload_type: ClassVar[str] = "application/vnd.secur-e-health.unenrol.v1+json"

    label: Literal["secur-e-health/unenrol/1"] = "secur-e-health/unenrol/1"
    nonce: Hex32


def _bad_challenge() -> PeerProtocolError:
    return PeerProtocolError(
        "approval.bad_challenge",
        "What a steward's key shall sign cannot be read.",
        next_step="Use commands of the same release as the agent, and begin the approval anew.",
    )
