"""Which kinds of key may vouch for a node, what each one's signature looks like, and for how long at a time."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from agent.core.errors import PeerProtocolError
from agent.statements.envelope import Proof

NODE_RP_ID = "node.secur-e-health"
"""The relying party of node keys; stewards' keys have others, so neither can stand for the other."""
AUTHENTICATOR_DATA_BYTES = 37
"""rpIdHash (32) | flags (1) | signCount (4): WebAuthn Level 3, 6.1; more follows only with the AT or ED flag."""
_FLAG_USER_PRESENT = 0x01
_FLAG_USER_VERIFIED = 0x04
_FLAG_BACKUP_ELIGIBLE = 0x08
_ZERO_HASH = bytes(32)


class KeyKind(StrEnum):
    """What holds the private key."""

    TPM = "tpm"
    PIV = "piv"
    FIDO2 = "fido2"
    PKCS11 = "pkcs11"
    SOFTWARE = "software"  # development only


class EvidenceClass(IntEnum):
    """How good the evidence is that a key lives in hardware; a study may demand a minimum."""

    NONE = 0  # a software key, or no evidence
    TEST = 1  # a simulator's own maker; counts only where the consortium says environment=test
    VIRTUAL = 2  # a virtual TPM, as trustworthy as its host
    HARDWARE = 3  # a maker's certificate


LONGEST_LIFETIME_S: dict[KeyKind, int] = {
    KeyKind.TPM: 12 * 3600,
    KeyKind.PIV: 12 * 3600,
    KeyKind.PKCS11: 12 * 3600,
    KeyKind.FIDO2: 24 * 3600,  # a person renews it: once a day, not at night
    KeyKind.SOFTWARE: 3600,
}
"""The longest validity of a session certificate that peers accept, in seconds, whatever the certificate says."""


@dataclass(frozen=True, slots=True)
class FIDO2Terms:
    """What an assertion of a FIDO2 root must show.

    Args:
        rp_id: The relying party that the credential was made for.
        user_verified: Whether PIN or biometry is demanded beside the touch.
        last_count: The highest signature counter seen; 0 where none was.
    """

    rp_id: str
    user_verified: bool = True
    last_count: int = 0


@dataclass(frozen=True, slots=True)
class RootKey:
    """A node's hardware key as others know it: from the site's signed record, never from the node's own message.

    Args:
        kind: What holds the private key.
        public_key: SubjectPublicKeyInfo, DER; an elliptic-curve key.
        evidence: How well the site says that it saw that it lives in hardware; see `shown`.
        fido2: Terms of a FIDO2 root; None for every other kind.
    """

    kind: KeyKind
    public_key: bytes
    evidence: EvidenceClass = EvidenceClass.NONE
    fido2: FIDO2Terms | None = None

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key, in hex."""
        return hashlib.sha256(self.public_key).hexdigest()

    @property
    def shown(self) -> EvidenceClass:
        """The evidence that counts: a software key shows nothing, whatever its site wrote beside it."""
        return EvidenceClass.NONE if self.kind is KeyKind.SOFTWARE else self.evidence


def public_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, in hex."""
    return hashlib.sha256(public_key_bytes(key)).hexdigest()


def encode_assertion(authenticator_data: bytes, signature: bytes) -> bytes:
    """The signature bytes of a FIDO2 root: u16be length | authenticatorData | ECDSA signature (DER)."""
    return struct.pack(">H", len(authenticator_data)) + authenticator_data + signature


def verify_proof(proof: Proof, root: RootKey) -> int:
    """Verify that `root` signed `proof`; its meaning, age and audience are the caller's to check.

    Args:
        proof: As parsed.
        root: From a trusted record.

    Returns:
        The signature counter of a FIDO2 root, for the caller to remember; 0 for every other kind.

    Raises:
        PeerProtocolError: Another key is named, or the signature or the assertion does not hold.
    """
    if proof.key_id != root.key_id:
        raise _unverified("it names another key")
    if root.kind is KeyKind.FIDO2:
        return _verify_assertion(proof, root)
    _verify_ecdsa(root.public_key, proof.signature, proof.signed_bytes())
    return 0


def verify_with(public_key: ec.EllipticCurvePublicKey, proof: Proof) -> None:
    """Verify that the plain key `public_key` (a certified session key, say) signed `proof`.

    Raises:
        PeerProtocolError: It names another key, or the signature does not hold.
    """
    verify_proof(proof, RootKey(KeyKind.SOFTWARE, public_key_bytes(public_key)))


def _verify_assertion(proof: Proof, root: RootKey) -> int:
    # Over clientDataHash = SHA-256(PAE): there is no browser, so no clientDataJSON.
    data, signature = _split_assertion(proof.signature)
    return verify_assertion(root, data, signature, hashlib.sha256(proof.signed_bytes()).digest())


def verify_assertion(root: RootKey, data: bytes, signature: bytes, client_data_hash: bytes) -> int:
    """Verify a FIDO2 key's assertion (WebAuthn Level 3, 7.2); the client data is the caller's to check.

    Args:
        root: From a trusted record, with its FIDO2 terms.
        data: authenticatorData.
        signature: DER.
        client_data_hash: (32,).

    Returns:
        The signature counter, for the caller to remember.

    Raises:
        PeerProtocolError: It does not hold, or not on the key's terms.
    """
    if root.fido2 is None:
        raise _unverified("its key has no FIDO2 terms on record")
    if len(data) < AUTHENTICATOR_DATA_BYTES:
        raise _unverified("it is no assertion")
    if client_data_hash == _ZERO_HASH:  # clients preflight with it, so a signature over it proves nothing
        raise _unverified("it is over a zero hash")
    if data[:32] != hashlib.sha256(root.fido2.rp_id.encode()).digest():
        raise _unverified("it was made for another relying party")
    flags, (count,) = data[32], struct.unpack(">I", data[33:AUTHENTICATOR_DATA_BYTES])
    if not flags & _FLAG_USER_PRESENT:
        raise _unverified("nobody touched the key")
    if root.fido2.user_verified and not flags & _FLAG_USER_VERIFIED:
        raise _unverified("the person was not verified by PIN or biometry")
    if flags & _FLAG_BACKUP_ELIGIBLE:  # WebAuthn Level 3, 6.1.3: a passkey of an account, not of one device
        raise _unverified("its key can be copied to other devices")
    _verify_ecdsa(root.public_key, signature, data + client_data_hash)
    _check_count(count, root.fido2.last_count)
    return int(count)


def _check_count(count: int, last_count: int) -> None:
    # WebAuthn Level 3, 6.1.1: both zero means that the authenticator keeps no counter.
    if (count or last_count) and count <= last_count:
        raise _unverified("its signature counter did not rise, so the key may have been cloned")


def _split_assertion(signature: bytes) -> tuple[bytes, bytes]:
    if len(signature) < 2:
        raise _unverified("it is no assertion")
    (length,) = struct.unpack(">H", signature[:2])
    data, rest = signature[2 : 2 + length], signature[2 + length :]
    if length < AUTHENTICATOR_DATA_BYTES or len(data) != length or not rest:
        raise _unverified("it is no assertion")
    return data, rest


_HASH_FOR_CURVE: dict[str, hashes.HashAlgorithm] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}


def hash_for(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """The hash that goes with the key's curve: SHA-256 with P-256, SHA-384 with P-384.

    Raises:
        PeerProtocolError: Another curve.
    """
    try:
        return _HASH_FOR_CURVE[key.curve.name]
    except KeyError:
        raise _unverified("its key is on a curve other than P-256 and P-384") from None


def load_public_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """Parse SubjectPublicKeyInfo (DER) of an elliptic-curve key on P-256 or P-384.

    Raises:
        PeerProtocolError: It is something else.
    """
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unverified("its key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _unverified("its key is not an elliptic-curve key")
    hash_for(key)
    return key


def _verify_ecdsa(public_key: bytes, signature: bytes, message: bytes) -> None:
    key = load_public_key(public_key)
    try:
        key.verify(signature, message, ec.ECDSA(hash_for(key)))
    except InvalidSignature:
        raise _unverified("its signature does not hold") from None


def _unverified(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "statements.unverified",
        f"A signed statement is not accepted: {what}.",
        next_step="It counts for nothing. If its sender is a known hospital, tell its technician.",
    )
