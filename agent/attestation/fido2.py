"""Evidence of a FIDO2 key: the maker's word, given when the key was made, and the key's own signature now.

A registration here has no browser and no client data: the authenticator signs the hash of a payload type, the relying
party and a challenge, so it can be taken for no registration on the web, nor for any statement.

Source: WebAuthn Level 3, 6.5 (attestation), 7.1 (registration), 8.2 (packed).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.attestation.base import AttestationType, InvalidAttestation
from fido2.attestation.packed import PackedAttestation
from fido2.webauthn import AttestationObject, AuthenticatorData

from agent.attestation.evidence import Evidence
from agent.attestation.makers import UNREADABLE_CERTIFICATE, TrustStore, chains_to, parse_certificate
from agent.attestation.possession import verify_possession
from agent.attestation.reader import malformed
from agent.core.errors import PeerProtocolError
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import NODE_RP_ID, EvidenceClass, FIDO2Terms, KeyKind, RootKey, public_key_bytes

REGISTRATION_TYPE = "application/vnd.secur-e-health.fido2-registration.v1"
MAX_ATTESTATION_BYTES = 1 << 14
_ES256_ON_P256 = {1: 2, 3: -7, -1: 1}  # RFC 9053, 7.1.1: kty EC2, ES256, P-256
_UNREADABLE = (
    *UNREADABLE_CERTIFICATE,
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, NotImplementedError),
)
"""What `fido2` raises over an attestation that a stranger bent."""


@dataclass(frozen=True, slots=True)
class FIDO2Appraisal:
    """A key that lives in an authenticator.

    Args:
        root: The key, with its terms and the class of its evidence, for the node's record.
        aaguid: The authenticator's model.
    """

    root: RootKey
    aaguid: bytes


def registration_hash(rp_id: str, challenge: bytes) -> bytes:
    """What an authenticator is given to sign when a key is made, in the place of a client data hash: (32,).

    Args:
        rp_id: The relying party.
        challenge: (32,), random.
    """
    return hashlib.sha256(pre_authentication_encoding(REGISTRATION_TYPE, rp_id.encode() + b"\x00" + challenge)).digest()


def appraise_fido2(
    evidence: Evidence, qualifying_data: bytes, stores: tuple[TrustStore, ...], *, rp_id: str = NODE_RP_ID, now_s: int
) -> FIDO2Appraisal:
    """Appraise a FIDO2 key's evidence.

    Args:
        evidence: As parsed.
        qualifying_data: (32,), what the asker bound it to.
        stores: Makers of authenticators, best class first.
        rp_id: The relying party that the key must be for.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: Any step fails.
    """
    # 1. The right kind, within limits.
    if evidence.kind is not KeyKind.FIDO2:
        raise malformed("another kind of key than an authenticator's")
    attestation = _parse_attestation(evidence.part("attestation_object"))
    # 2. The registration must be ours, by a person who was there and was verified.
    _check_registration(attestation.auth_data, rp_id)
    # 3. It must be about the key in question.
    if attested_key(attestation.auth_data) != evidence.public_key:
        raise _not_shown("it is about another key")
    # 4. The authenticator's maker must have signed it, for this very registration.
    client_data_hash = registration_hash(rp_id, evidence.part("registration_challenge"))
    evidence_class = _class_of(_verify_attestation(attestation, client_data_hash), stores, now_s)
    # 5. The key must be in its holder's hands now.
    terms = FIDO2Terms(rp_id, user_verified=True, last_count=attestation.auth_data.counter)
    root = RootKey(KeyKind.FIDO2, evidence.public_key, evidence_class, terms)
    verify_possession(evidence, root, qualifying_data)
    return FIDO2Appraisal(root, _aaguid(attestation.auth_data))


def attested_key(data: AuthenticatorData) -> bytes:
    """SubjectPublicKeyInfo (DER) of the credential in `data`.

    Raises:
        PeerProtocolError: There is none, or it is no P-256 key for ES256.
    """
    if data.credential_data is None:
        raise malformed("a registration without a credential")
    cose = data.credential_data.public_key
    if {label: cose.get(label) for label in _ES256_ON_P256} != _ES256_ON_P256:
        raise malformed("a credential of another kind than ES256 on P-256")
    try:
        x, y = int.from_bytes(cose[-2], "big"), int.from_bytes(cose[-3], "big")
        return public_key_bytes(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())
    except _UNREADABLE as error:
        raise malformed("a credential that is no point of its curve") from error


def _parse_attestation(data: bytes) -> AttestationObject:
    if len(data) > MAX_ATTESTATION_BYTES:
        raise malformed("an attestation larger than any authenticator's")
    try:
        attestation = AttestationObject(data)
        again = AttestationObject.create(attestation.fmt, attestation.auth_data, attestation.att_stmt)
    except _UNREADABLE as error:
        raise malformed("an attestation that cannot be read") from error
    if again != data:  # the library reads past lengths that do not hold
        raise malformed("an attestation in a form that is not canonical")
    return attestation


def _check_registration(data: AuthenticatorData, rp_id: str) -> None:
    if data.rp_id_hash != hashlib.sha256(rp_id.encode()).digest():
        raise _not_shown("it was made for another relying party")
    if not data.is_user_present() or not data.is_user_verified():
        raise _not_shown("nobody was there, or nobody was verified, when it was made")
    if data.flags & AuthenticatorData.FLAG.BE:  # WebAuthn Level 3, 6.1.3
        raise _not_shown("it can be copied to other devices")


def _verify_attestation(attestation: AttestationObject, client_data_hash: bytes) -> tuple[x509.Certificate, ...]:
    if attestation.fmt != PackedAttestation.FORMAT:
        raise _not_shown(f"its attestation is of a form that does not count ({attestation.fmt!r:.20})")
    try:
        result = PackedAttestation().verify(attestation.att_stmt, attestation.auth_data, client_data_hash)
    except InvalidAttestation as error:
        raise _not_shown("its attestation does not hold") from error
    except _UNREADABLE as error:
        raise malformed("an attestation that cannot be read") from error
    if result.attestation_type is not AttestationType.BASIC:
        raise _not_shown("only the key itself vouches for it")
    return tuple(parse_certificate(der) for der in result.trust_path)


def _class_of(path: tuple[x509.Certificate, ...], stores: tuple[TrustStore, ...], now_s: int) -> EvidenceClass:
    for store in stores:
        if chains_to(store, path[0], path[1:], now_s=now_s):
            return store.evidence
    raise PeerProtocolError(
        "attestation.unknown_authenticator_maker",
        "No known maker of security keys vouches for this key.",
        next_step="If the key is genuine, the consortium may add its maker's root; otherwise use another key.",
    )


def _aaguid(data: AuthenticatorData) -> bytes:
    return b"" if data.credential_data is None else bytes(data.credential_data.aaguid)


def _not_shown(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "attestation.fido2_not_shown",
        f"It is not shown that the key lives in a security key: {what}.",
        next_step="Make the key anew with `seh-agent key init`; if it repeats, use another security key.",
    )
