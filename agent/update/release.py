"""Which releases may run here: those that a threshold of the keys in the package signed. Runs in the slot tool too.

The record beside an image is a DSSE envelope (`agent.statements.release`); the keys lie in
/usr/share/secur-e-health/release-keys.json: `{"threshold": 2, "keys": {"<key id>": "<PEM>", ...}}`, P-256, key ids as
securesystemslib makes them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from agent.core.errors import OperatorError, PeerProtocolError
from agent.statements.release import PAYLOAD_TYPE, Release, parse_release, pre_authentication_encoding

MAX_RECORD_BYTES: Final = 64 << 10
MAX_KEYS: Final = 32


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """Who may sign releases.

    Args:
        threshold: How many of them must have signed one.
        keys: By key id, all different.
    """

    threshold: int
    keys: Mapping[str, ec.EllipticCurvePublicKey]


def parse_release_keys(data: bytes) -> ReleaseKeys:
    """Parse the package's release-keys.json.

    Raises:
        OperatorError: It is damaged (`update.bad_keys`).
    """
    try:
        fields = json.loads(data)
        keys = {str(key_id): _load_key(pem) for key_id, pem in fields["keys"].items()}
        return ReleaseKeys(_check_threshold(fields["threshold"], keys), keys)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm) as error:
        raise OperatorError(
            "update.bad_keys",
            "The list of who may sign releases is damaged.",
            next_step="Install the package again.",
        ) from error


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
    payload, signatures = _parse_envelope(record)
    message = pre_authentication_encoding(payload)
    signers = {
        key_id
        for key_id, signature in signatures
        if key_id in keys.keys and _holds(keys.keys[key_id], signature, message)
    }
    if len(signers) < keys.threshold:
        raise PeerProtocolError(
            "update.unsigned_release",
            f"{len(signers)} of those who may sign releases signed this one; it takes {keys.threshold}.",
            next_step="It is not used. Fetch the release again; if it repeats, tell its publisher.",
            signers=len(signers),
            threshold=keys.threshold,
        )
    return parse_release(payload)


def _parse_envelope(record: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    if len(record) > MAX_RECORD_BYTES:
        raise _bad_record("it is larger than any may be")
    try:
        envelope: dict[str, Any] = json.loads(record)
        kind = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [
            (str(one["keyid"]), base64.b64decode(one["sig"], validate=True)) for one in envelope["signatures"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise _bad_record("it is no DSSE envelope") from error
    if kind != PAYLOAD_TYPE:
        raise _bad_record("it is a statement of another kind")
    if len(signatures) > MAX_KEYS:
        raise _bad_record("it carries more signatures than there can be signers")
    return payload, signatures


def _holds(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_threshold(threshold: object, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> int:
    # A key under two ids would count twice.
    different = {key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys.values()}
    if len(different) != len(keys):
        raise ValueError("a key twice")
    if type(threshold) is not int or not 1 <= threshold <= len(keys):
        raise ValueError("a threshold that the keys cannot reach")
    return threshold


def _load_key(pem: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(pem, str):
        raise TypeError("not a text")
    key = load_pem_public_key(pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("no key on P-256")
    return key


def _bad_record(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.bad_record",
        f"A release's record cannot be read: {what}.",
        next_step="It is not used. Fetch the release again; if it repeats, tell its publisher.",
    )
