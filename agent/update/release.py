"""Which releases may run here: those that a threshold of the keys in the package signed. Runs in the slot tool too.

The record beside an image is a DSSE envelope (`agent.statements.release`); the keys lie in
/usr/share/secur-e-health/release-keys.json: `{"version": 1, "threshold": 2, "keys": {"<key id>": "<PEM>", ...}}`,
P-256, key ids as securesystemslib makes them. A list of a higher version that these keys signed takes its place
(`agent.update.keys`).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import PeerProtocolError
from agent.statements.release import PAYLOAD_TYPE, Release, parse_release, pre_authentication_encoding
from agent.statements.release_keys import MAX_KEYS, ReleaseKeys

MAX_RECORD_BYTES: Final = 64 << 10


def verify_release(record: bytes, keys: ReleaseKeys) -> Release:
    """Verify a release's record.

    Args:
        record: The envelope, at most `MAX_RECORD_BYTES`.
        keys: Who may sign.

    Returns:
        What was signed.

    Raises:
        PeerProtocolError: It is no record (`update.bad_record`, `statements.bad_release`), or too few of the keys
            signed it (`update.unsigned_release`).
    """
    envelope = parse_envelope(record, PAYLOAD_TYPE)
    signers = envelope.signers(keys)
    if signers < keys.threshold:
        raise PeerProtocolError(
            "update.unsigned_release",
            f"{signers} of those who may sign releases signed this one; it takes {keys.threshold}.",
            next_step="It is not used. Fetch the release again; if it repeats, tell its publisher.",
            signers=signers,
            threshold=keys.threshold,
        )
    return parse_release(envelope.payload)


def read_verified(record: bytes) -> Release:
    """What a record says that was verified before, and that nobody but root can have changed since.

    Raises:
        PeerProtocolError: It is no record (`update.bad_record`, `statements.bad_release`).
    """
    return parse_release(parse_envelope(record, PAYLOAD_TYPE).payload)


@dataclass(frozen=True, slots=True)
class SignedEnvelope:
    """A DSSE envelope, parsed; nothing is verified yet.

    Args:
        kind: Its payload type.
        payload: What is signed.
        signatures: By key id, in order; one may stand there twice.
    """

    kind: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def signers(self, keys: ReleaseKeys) -> int:
        """How many of the keys signed it."""
        message = pre_authentication_encoding(self.payload, self.kind)
        return len(
            {
                key_id
                for key_id, signature in self.signatures
                if key_id in keys.keys and _holds(keys.keys[key_id], signature, message)
            }
        )


def parse_envelope(data: bytes, expected: str) -> SignedEnvelope:
    """Parse the envelope of a statement of the maker's.

    Args:
        data: At most `MAX_RECORD_BYTES`.
        expected: Its payload type.

    Raises:
        PeerProtocolError: It is something else (`update.bad_record`).
    """
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record("it is larger than any may be")
    try:
        envelope: dict[str, Any] = json.loads(data)
        kind = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [
            (str(one["keyid"]), base64.b64decode(one["sig"], validate=True)) for one in envelope["signatures"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _bad_record("it is no DSSE envelope") from error
    if kind != expected:
        raise _bad_record("it is a statement of another kind")
    if len(signatures) > MAX_KEYS:
        raise _bad_record("it carries more signatures than there can be signers")
    return SignedEnvelope(expected, payload, tuple(signatures))


def _holds(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _bad_record(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.bad_record",
        f"A release's record cannot be read: {what}.",
        next_step="It is not used. Fetch the release again; if it repeats, tell its publisher.",
    )
