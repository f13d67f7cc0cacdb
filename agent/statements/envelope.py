"""The one signed-statement format: a DSSE envelope whose payload type names the kind and version of the statement.

A signature covers DSSE's pre-authentication encoding of (payload type, payload), so a statement of one kind never
verifies as another, and none can be mistaken for what the same key signs elsewhere: the encoding begins with
"DSSEv1 ", which is neither JSON (FIDO2 client data) nor DER (certificates) nor a TPM structure.

Source: DSSE v1.0.2 (protocol.md, envelope.md); RFC 8785 for the payload's canonical form.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import rfc8785
from pydantic import BaseModel, ConfigDict, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError
from securesystemslib.signer import Signature

from agent.core.errors import PeerProtocolError

MAX_ENVELOPE_BYTES = 1 << 20
_TYPE_FORM = "application/vnd.secur-e-health.{kind}.v{version}+json"


class Statement(BaseModel):
    """Something that a key vouches for: texts, whole numbers, truth values, lists and maps of them, no fractions.

    A subclass names its `kind` and `version`; a change of meaning or fields is a new version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @classmethod
    def payload_type(cls) -> str:
        """The media type that names this kind and version inside the signature."""
        return _TYPE_FORM.format(kind=cls.kind, version=cls.version)

    def payload(self) -> bytes:
        """The canonical bytes that are signed (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def digest(self) -> bytes:
        """SHA-256 over the bytes that are signed, payload type included: (32,)."""
        return hashlib.sha256(pre_authentication_encoding(self.payload_type(), self.payload())).digest()

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Parse the canonical payload of this kind.

        Raises:
            PeerProtocolError: The bytes are no such statement, or not its canonical form.
        """
        try:
            # Through JSON mode, so that strict types hold but lists still become tuples.
            statement = cls.model_validate_json(payload)
        except (ValidationError, ValueError, RecursionError) as error:
            raise _malformed(f"it is no {cls.kind} statement") from error
        if statement.payload() != payload:
            raise _malformed("its payload is not in canonical form")
        return statement


@dataclass(frozen=True, slots=True)
class Proof:
    """One statement's bytes, signed by one key.

    Args:
        payload_type: Names the statement's kind and version.
        payload: The statement's canonical bytes.
        key_id: SHA-256 of the key's SubjectPublicKeyInfo, in hex.
        signature: In the form of the key's kind (`agent.statements.roots`).
    """

    payload_type: str
    payload: bytes
    key_id: str
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return pre_authentication_encoding(self.payload_type, self.payload)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: lengths before contents, so that no two (type, payload) pairs encode alike."""
    return Envelope(payload, payload_type, {}).pae()


def encode_proof(proof: Proof) -> bytes:
    """The DSSE envelope (JSON) that carries `proof`; the inverse of `parse_proof`."""
    signature = Signature(proof.key_id, proof.signature.hex())
    envelope = Envelope(proof.payload, proof.payload_type, {proof.key_id: signature})
    return json.dumps(envelope.to_dict(), separators=(",", ":")).encode()


def parse_proof(data: bytes) -> Proof:
    """Parse a DSSE envelope that carries exactly one signature. Nothing is verified yet.

    Args:
        data: At most `MAX_ENVELOPE_BYTES`.

    Raises:
        PeerProtocolError: The bytes are no such envelope.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise _malformed("it is larger than any statement may be")
    try:
        envelope = Envelope.from_dict(_object_from(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise _malformed("it is no DSSE envelope") from error
    if len(envelope.signatures) != 1:
        raise _malformed("it does not carry exactly one signature")
    if not isinstance(envelope.payload_type, str) or not envelope.payload_type.isascii():
        raise _malformed("its payload type is no media type")
    (signature,) = envelope.signatures.values()
    return Proof(envelope.payload_type, envelope.payload, signature.keyid, bytes.fromhex(signature.signature))


def _object_from(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _malformed(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "statements.malformed",
        f"A signed statement cannot be read: {what}.",
        next_step="It counts for nothing. Ask its sender for a new one; if it repeats, the versions do not fit.",
    )
