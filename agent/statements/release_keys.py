"""Who may sign releases: keys and threshold, versioned. Standard library and `cryptography` only, for the slot tool.

As the package ships it, and as the payload of the list that follows it (`agent.update.keys`); RFC 8785's form there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from agent.core.errors import OperatorError, PeerProtocolError

KEYS_PAYLOAD_TYPE: Final = "application/vnd.secur-e-health.release-keys.v1+json"
MAX_KEYS: Final = 32
MAX_KEYS_VERSION: Final = 1 << 31
MAX_STEPS: Final = 256
"""How many lists a box follows from the one that its package brought."""


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """Who may sign releases.

    Args:
        threshold: How many of them must have signed one.
        keys: By key id, all different.
        version: Of the list: one more each time that somebody is replaced.
    """

    threshold: int
    keys: Mapping[str, ec.EllipticCurvePublicKey]
    version: int = 1

    def payload(self) -> bytes:
        """The canonical bytes that are signed and stored; the inverse of `parse_release_keys`."""
        keys = {key_id: _pem(key) for key_id, key in self.keys.items()}
        fields = {"version": self.version, "threshold": self.threshold, "keys": keys}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def parse_release_keys(data: bytes) -> ReleaseKeys:
    """Parse the package's release-keys.json; one without a version is the first.

    Raises:
        OperatorError: It is damaged (`update.bad_keys`).
    """
    try:
        fields = json.loads(data)
        keys = {str(key_id): _load_key(pem) for key_id, pem in fields["keys"].items()}
        threshold = _check_threshold(fields["threshold"], keys)
        return ReleaseKeys(threshold, keys, _check_version(fields.get("version", 1)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm) as error:
        raise OperatorError(
            "update.bad_keys",
            "The list of who may sign releases is damaged.",
            next_step="Install the package again.",
        ) from error


def parse_key_list(payload: bytes) -> ReleaseKeys:
    """Parse the payload of one step. Nothing is verified.

    Raises:
        PeerProtocolError: It is no list in canonical form (`update.bad_key_list`).
    """
    try:
        keys = parse_release_keys(payload)
    except OperatorError as error:
        raise bad_key_list("a key or the threshold cannot be used") from error
    # Whatever else stood in it, or stood twice, would not come out again.
    if keys.payload() != payload:
        raise bad_key_list("it is not in canonical form")
    if len(keys.keys) > MAX_KEYS:
        raise bad_key_list("it names more keys than any may")
    return keys


def _check_threshold(threshold: object, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> int:
    # A key under two ids would count twice.
    different = {key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys.values()}
    if len(different) != len(keys):
        raise ValueError("a key twice")
    if type(threshold) is not int or not 1 <= threshold <= len(keys):
        raise ValueError("a threshold that the keys cannot reach")
    return threshold


def _check_version(version: object) -> int:
    if type(version) is not int or not 1 <= version <= MAX_KEYS_VERSION:
        raise ValueError("no version")
    return version


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _load_key(pem: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(pem, str):
        raise TypeError("not a text")
    key = load_pem_public_key(pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TypeError("no key on P-256")
    return key


def bad_key_list(what: str) -> PeerProtocolError:
    """A list cannot be used."""
    return PeerProtocolError(
        "update.bad_key_list",
        f"A list of who may sign releases cannot be used: {what}.",
        next_step="The list that counts stays. Tell the maker of the software.",
    )
