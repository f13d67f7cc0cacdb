"""A steward's signed act: the record of an approval, or the proof of a withdrawal, and its verification.

Source: WebAuthn Level 3, 7.2 (assertions); FIPS 201-3 for cards, whose signature is plain ECDSA.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.governance.challenge import Act, Challenge
from agent.statements.roots import hash_for, load_public_key, verify_assertion
from agent.trust.records import StewardFile, parse_certificate_pem

TERMINAL_ORIGIN: Final = "seh-agent:terminal"
"""Where assertions come from that were made at the box's terminal: no page on any network has such an origin."""
MAX_RECORD_BYTES: Final = 1 << 15
MAX_CLIENT_DATA_BYTES: Final = 1 << 12
_CLIENT_DATA_TYPE: Final = "webauthn.get"


def _check_base64url(text: str) -> str:
    if encode_bytes(decode_bytes(text)) != text:
        raise ValueError("no base64url")
    return text


_Bytes = Annotated[str, Field(min_length=1, max_length=1 << 13), AfterValidator(_check_base64url)]
"""base64url without padding."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class WebAuthnEvidence(_Stored):
    """An assertion; names and form as in WebAuthn's own JSON (Level 3, 5.1.8).

    Args:
        authenticator_data: base64url.
        client_data_json: base64url.
        signature: DER, base64url.
    """

    kind: Literal["webauthn"] = "webauthn"
    authenticator_data: _Bytes = Field(alias="authenticatorData")
    client_data_json: _Bytes = Field(alias="clientDataJSON")
    signature: _Bytes


class PIVEvidence(_Stored):
    """A smartcard's signature.

    Args:
        signature: DER, base64url, over `Challenge.message`.
    """

    kind: Literal["piv"] = "piv"
    signature: _Bytes


Evidence = Annotated[WebAuthnEvidence | PIVEvidence, Field(discriminator="kind")]


class StewardProof(_Stored):
    """Who acted, and what the key said.

    Args:
        steward: Short name of the key on record.
        evidence: What it said.
    """

    steward: IdentifierText
    evidence: Evidence

    def encode(self) -> bytes:
        """Canonical JSON."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))


class Approval(StewardProof):
    """The record of an approval, as it is stored and exported.

    Args:
        challenge: What was approved.
    """

    format: Literal["secur-e-health/approval/1"] = "secur-e-health/approval/1"
    challenge: Challenge

    @property
    def digest(self) -> str:
        """SHA-256 of the record's canonical JSON, hex."""
        return hashlib.sha256(self.encode()).hexdigest()


def parse_approval(data: bytes) -> Approval:
    """Parse a record.

    Raises:
        PeerProtocolError: It is none (`approval.bad_record`).
    """
    try:
        return Approval.model_validate_json(_bounded(data))
    except ValidationError as error:
        raise _bad_record(explain_invalid(error, whole="record")) from error


def parse_proof(data: bytes) -> StewardProof:
    """Parse a proof, as a withdrawal has one.

    Raises:
        PeerProtocolError: It is none (`approval.bad_record`).
    """
    try:
        return StewardProof.model_validate_json(_bounded(data))
    except ValidationError as error:
        raise _bad_record(explain_invalid(error, whole="proof")) from error


def verify_approval(approval: Approval, steward: StewardFile, origins: frozenset[str] | None) -> int:
    """Verify that a steward's key approved exactly what the record says; see `verify_act`."""
    return verify_act(approval.challenge, approval, steward, origins)


def verify_act(act: Act, proof: StewardProof, steward: StewardFile, origins: frozenset[str] | None) -> int:
    """Verify that a steward's key signed an act. That the act is wanted now is the caller's to check.

    Args:
        act: What must have been signed.
        proof: As parsed.
        steward: The key, from the hospital's own records.
        origins: Where a WebAuthn assertion may come from, each exactly; None where that was checked when it came.

    Returns:
        The key's signature counter, for the caller to remember; 0 for a card.

    Raises:
        PeerProtocolError: It did not sign it, or not as a steward's key must (`approval.not_signed`,
            `statements.unverified`).
    """
    # 1. It must be the key that is named, in a form that such a key has.
    if proof.steward != steward.steward or act.site != steward.site:
        raise _not_signed("it names another steward")
    if proof.evidence.kind != steward.kind:
        raise _not_signed("it is of another kind than the steward's key")
    # 2. A card signs the act itself.
    if isinstance(proof.evidence, PIVEvidence):
        _verify_card(act.message(), proof.evidence, steward)
        return 0
    # 3. A browser or terminal says what was asked, and where: WebAuthn Level 3, 7.2 steps 10 to 14.
    client_data = decode_bytes(proof.evidence.client_data_json)
    _check_client_data(client_data, act.digest, origins)
    # 4. The authenticator signs over that: steps 15 to 21.
    return verify_assertion(
        steward.root,
        decode_bytes(proof.evidence.authenticator_data),
        decode_bytes(proof.evidence.signature),
        hashlib.sha256(client_data).digest(),
    )


def check_certificate(steward: StewardFile, *, now_s: int) -> None:
    """Check that a card's certificate, where it has one, has not run out.

    Raises:
        PeerProtocolError: It has (`approval.not_signed`).
    """
    if steward.certificate is not None and parse_certificate_pem(steward.certificate)[1] <= now_s:
        raise _not_signed("the card's certificate has run out")


def terminal_client_data(challenge: bytes) -> bytes:
    """What a terminal puts in the place of a browser's client data (WebAuthn Level 3, 5.8.1.1).

    Args:
        challenge: `digest` of the act, (32,).
    """
    fields = {"type": _CLIENT_DATA_TYPE, "challenge": encode_bytes(challenge), "origin": TERMINAL_ORIGIN}
    return json.dumps({**fields, "crossOrigin": False}, separators=(",", ":")).encode()


def _verify_card(message: bytes, evidence: PIVEvidence, steward: StewardFile) -> None:
    key = load_public_key(steward.root.public_key)
    try:
        key.verify(decode_bytes(evidence.signature), message, ec.ECDSA(hash_for(key)))
    except (InvalidSignature, ValueError):
        raise _not_signed("the card did not sign this") from None


def _check_client_data(client_data: bytes, challenge: bytes, origins: frozenset[str] | None) -> None:
    if len(client_data) > MAX_CLIENT_DATA_BYTES:
        raise _not_signed("its client data is too large")
    try:
        fields = json.loads(client_data)
    except (ValueError, RecursionError) as error:
        raise _not_signed("its client data cannot be read") from error
    if not isinstance(fields, dict) or fields.get("type") != _CLIENT_DATA_TYPE:
        raise _not_signed("its client data is of another kind")
    if fields.get("challenge") != encode_bytes(challenge):
        raise _not_signed("something else was signed")
    if origins is not None and fields.get("origin") not in tuple(origins):
        raise _not_signed("it was made at an address that is not this box's")
    if fields.get("crossOrigin", False) is not False or "topOrigin" in fields:
        raise _not_signed("it was made inside another site's page")


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record(f"it is larger than {MAX_RECORD_BYTES} bytes")
    return data


def _bad_record(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "approval.bad_record",
        f"An approval cannot be read: {what}.",
        next_step="It counts for nothing. Approve again, in the console or with `seh-agent study approve`.",
    )


def _not_signed(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "approval.not_signed",
        f"A steward's signature is not accepted: {what}.",
        next_step="Nothing was approved or withdrawn. Begin anew, with the steward's own key; if it repeats, have the "
        "hospital put the key on record again.",
    )
