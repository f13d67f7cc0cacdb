"""The enrolment token: what a box must know to find its consortium, and one secret that counts once.

It is a COSE_Sign1 (RFC 9052 4.2, ES256) over a CBOR map, written as `SEH1:` and base45, for a QR code, a stick
(`SEH-TOKEN.TXT` on a FAT volume) or a keyboard. It brings trust in a roster and in studies, never in software:

    {1: registrar "host:port", 2: token id, 3: secret, 4: SHA-256 of the TLS authority's certificate (DER),
     5: root digest, 6: site, 7: expires (s since 1970), 8: SHA-256 of the name of the endorsement key it is bound to}

The signature names its key by the first 8 bytes of the key's id (SHA-256 of SubjectPublicKeyInfo): the site's key, or
the registrar's. Who issued it may be known only after the repository was fetched with what the token says; until
`verify_token`, nothing in it is believed beyond where to ask.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import TypeAdapter

from agent.core.cbor import decode_plain
from agent.core.config import Address
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import IdentifierText, SiteID
from agent.statements.roots import key_id
from agent.trust.base45 import decode_base45, encode_base45

PREFIX: Final = "SEH1:"
MAX_TOKEN_CHARACTERS: Final = 1024
STICK_FILE: Final = "SEH-TOKEN.TXT"
STICK_LABEL: Final = "SEH-TOKEN"
ID_BYTES: Final = 8
SECRET_BYTES: Final = 16
DIGEST_BYTES: Final = 32
KEY_HINT_BYTES: Final = 8
MAX_EXPIRES_S: Final = 1 << 34  # the year 2514: past it, calendars of other programs end

_ADDRESS: Final = TypeAdapter(Address)
_IDENTIFIER: Final = TypeAdapter(IdentifierText)
_FAMILY: Final = re.compile(r"SEH[0-9]{1,3}:")
_CONTEXT: Final = b"secur-e-health token v1"  # external_aad: what else the key signs is no token
_TAG: Final = b"\xd2"  # COSE_Sign1, RFC 9052 4.2
_ALG, _KID, _ES256 = 1, 4, -7  # RFC 9052 3.1, RFC 9053 2.1
_COORDINATE_BYTES: Final = 32
_MAX_DEPTH: Final = 3
_REGISTRAR, _ID, _SECRET, _TLS_PIN, _ROOT, _SITE, _EXPIRES, _EK = range(1, 9)


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says.

    Args:
        registrar: `host:port`.
        id: (8,), public.
        secret: (16,); the registrar and the site each know only what is derived from it for them.
        tls_pin: (32,), SHA-256 of the certificate (DER) of the authority that the registrar's certificate comes from.
        root_digest: (32,), SHA-256 of the consortium's first root metadata.
        site: The hospital that a box joins.
        expires_s: From when it counts no more, seconds since 1970.
        ek_digest: (32,), `ek_digest` of the one box that may use it; None where any may.
    """

    registrar: str
    id: bytes
    secret: bytes = field(repr=False)
    tls_pin: bytes
    root_digest: bytes
    site: SiteID
    expires_s: int
    ek_digest: bytes | None = None

    def __post_init__(self) -> None:
        _ADDRESS.validate_python(self.registrar, strict=True)
        _IDENTIFIER.validate_python(self.site, strict=True)
        digests = (self.tls_pin, self.root_digest, *(() if self.ek_digest is None else (self.ek_digest,)))
        if not all(_is_bytes(digest, DIGEST_BYTES) for digest in digests):
            raise ValueError("a digest of another length")
        if not (_is_bytes(self.id, ID_BYTES) and _is_bytes(self.secret, SECRET_BYTES)):
            raise ValueError("an id or a secret of another length")
        if type(self.expires_s) is not int or not 0 <= self.expires_s < MAX_EXPIRES_S:
            raise ValueError("an expiry out of range")


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A token as parsed: its signature is not verified yet.

    Args:
        token: What it says.
        key_hint: (8,), the head of the id of the key that is said to have signed it.
        signed_bytes: What the signature covers.
        signature: (64,), r and s.
    """

    token: Token
    key_hint: bytes
    signed_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def is_issued_by(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Whether it names `key` as its issuer; that it is so, only `verify_token` shows."""
        return self.key_hint == _hint(key)


def issue_token(token: Token, issuer_key: ec.EllipticCurvePublicKey, sign: Callable[[bytes], bytes]) -> str:
    """Sign a token; its text is a secret until it was used.

    Args:
        token: What it says.
        issuer_key: P-256: the site's or the registrar's.
        sign: Signs bytes with that key: ECDSA over SHA-256, DER, as every signer here gives it.

    Returns:
        `SEH1:...`, at most 1024 characters, all of them in a QR code's alphanumeric set.

    Raises:
        OperatorError: The key is on another curve, or `sign` signs with another key (`token.wrong_issuer_key`).
    """
    if not isinstance(issuer_key.curve, ec.SECP256R1):
        raise _wrong_issuer_key("a token is signed with a key on P-256")
    protected = _protected(_hint(issuer_key))
    payload = _encode_payload(token)
    signed_bytes = _signed_bytes(protected, payload)
    r, s = decode_dss_signature(sign(signed_bytes))
    signature = b"".join(number.to_bytes(_COORDINATE_BYTES, "big") for number in (r, s))
    try:
        _verify(issuer_key, signature, signed_bytes)
    except InvalidSignature:
        raise _wrong_issuer_key("what signs is not the key that the repository lists") from None
    return PREFIX + encode_base45(_TAG + cbor2.dumps([protected, {}, payload, signature], canonical=True))


def parse_token(text: str) -> SignedToken:
    """Parse a token's text. Nothing is verified yet.

    Args:
        text: What a stick, a code or a keyboard gave; white space around it is ignored.

    Raises:
        OperatorError: It is no token (`token.not_a_token`), one of another version (`token.other_version`), or one
            that was damaged (`token.damaged`).
    """
    if len(text) > 2 * MAX_TOKEN_CHARACTERS:
        raise _not_a_token()
    text = text.strip()  # base45 never ends in a space, and the prefix does not begin with one
    if not text.startswith(PREFIX):
        raise _other_version() if _FAMILY.match(text) else _not_a_token()
    if len(text) > MAX_TOKEN_CHARACTERS:
        raise _damaged()
    try:
        return _parse_sign1(decode_base45(text.removeprefix(PREFIX)))
    except ValueError as error:
        raise _damaged() from error


def verify_token(signed: SignedToken, issuer_key: ec.EllipticCurvePublicKey, now_s: int) -> Token:
    """Verify a token.

    Args:
        signed: As parsed.
        issuer_key: From the verified repository: a key of the token's own site, or the registrar's.
        now_s: Seconds since 1970.

    Raises:
        OperatorError: It has expired (`token.expired`).
        PeerProtocolError: This key did not sign it, or not these bytes (`token.not_genuine`).
    """
    if not signed.is_issued_by(issuer_key):
        raise _not_genuine(signed.token)
    try:
        _verify(issuer_key, signed.signature, signed.signed_bytes)
    except InvalidSignature:
        raise _not_genuine(signed.token) from None
    check_expiry(signed.token, now_s)
    return signed.token


def check_expiry(token: Token, now_s: int) -> None:
    """Refuse a token whose time is over.

    Raises:
        OperatorError: It is (`token.expired`).
    """
    if now_s < token.expires_s:
        return
    since = datetime.fromtimestamp(token.expires_s, UTC)
    raise OperatorError(
        "token.expired",
        f"The enrolment token for {token.site} expired on {since:%Y-%m-%d at %H:%M} UTC.",
        next_step="Ask the hospital's operator for a new token; if that date has not come yet, set this box's clock.",
        expires_s=token.expires_s,
        now_s=now_s,
    )


def registrar_secret(token: Token) -> bytes:
    """What proves the token to the registrar: (32,). It tells nothing about `site_secret`."""
    return _derive(token, b"secur-e-health token registrar v1")


def site_secret(token: Token) -> bytes:
    """What proves the token to the site's endorsing tool: (32,). The registrar never learns it."""
    return _derive(token, b"secur-e-health token site v1")


def ek_digest(ek_name: bytes) -> bytes:
    """What a token that is bound to one box says of it: (32,).

    Args:
        ek_name: Name of the box's endorsement key (TPM 2.0 Part 1, 16), two bytes of algorithm included.
    """
    return hashlib.sha256(ek_name).digest()


def _derive(token: Token, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), DIGEST_BYTES, salt=token.id, info=purpose).derive(token.secret)


def _hint(key: ec.EllipticCurvePublicKey) -> bytes:
    return bytes.fromhex(key_id(key))[:KEY_HINT_BYTES]


def _is_bytes(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def _encode_payload(token: Token) -> bytes:
    fields: dict[int, object] = {
        _REGISTRAR: token.registrar,
        _ID: token.id,
        _SECRET: token.secret,
        _TLS_PIN: token.tls_pin,
        _ROOT: token.root_digest,
        _SITE: token.site,
        _EXPIRES: token.expires_s,
    }
    if token.ek_digest is not None:
        fields[_EK] = token.ek_digest
    return cbor2.dumps(fields, canonical=True)


def _parse_payload(payload: bytes) -> Token:
    fields = decode_plain(payload, max_depth=_MAX_DEPTH, text_keys=False)
    if not isinstance(fields, dict) or not set(range(_REGISTRAR, _EK)) <= fields.keys():
        raise ValueError("fields are missing")
    token = Token(
        registrar=fields[_REGISTRAR],
        id=fields[_ID],
        secret=fields[_SECRET],
        tls_pin=fields[_TLS_PIN],
        root_digest=fields[_ROOT],
        site=fields[_SITE],
        expires_s=fields[_EXPIRES],
        ek_digest=fields.get(_EK),
    )
    # One form for each token: no unknown field, no longer way to write a number.
    if _encode_payload(token) != payload:
        raise ValueError("not in canonical form")
    return token


def _parse_sign1(data: bytes) -> SignedToken:
    if not data.startswith(_TAG):
        raise ValueError("not a COSE_Sign1")
    parts = decode_plain(data.removeprefix(_TAG), max_depth=_MAX_DEPTH, text_keys=False)
    if not isinstance(parts, list) or len(parts) != 4:
        raise ValueError("not a COSE_Sign1")
    protected, unprotected, payload, signature = parts
    if not isinstance(protected, bytes) or unprotected != {} or not isinstance(payload, bytes):
        raise ValueError("not a COSE_Sign1 of ours")
    if not _is_bytes(signature, 2 * _COORDINATE_BYTES):
        raise ValueError("not an ES256 signature")
    hint = protected[-KEY_HINT_BYTES:]
    if protected != _protected(hint):
        raise ValueError("other headers than ours")
    return SignedToken(_parse_payload(payload), hint, _signed_bytes(protected, payload), signature)


def _protected(hint: bytes) -> bytes:
    return cbor2.dumps({_ALG: _ES256, _KID: hint}, canonical=True)


def _signed_bytes(protected: bytes, payload: bytes) -> bytes:
    # Sig_structure, RFC 9052 4.4.
    return cbor2.dumps(["Signature1", protected, _CONTEXT, payload], canonical=True)


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, signed_bytes: bytes) -> None:
    r, s = (int.from_bytes(part, "big") for part in (signature[:_COORDINATE_BYTES], signature[_COORDINATE_BYTES:]))
    key.verify(encode_dss_signature(r, s), signed_bytes, ec.ECDSA(hashes.SHA256()))


def _wrong_issuer_key(what: str) -> OperatorError:
    return OperatorError(
        "token.wrong_issuer_key",
        f"The token was not issued: {what}.",
        next_step="Name the key that signs for this site, or the registrar's own.",
    )


def _not_genuine(token: Token) -> PeerProtocolError:
    return PeerProtocolError(
        "token.not_genuine",
        f"The enrolment token was not issued by {token.site} or its consortium, or was altered since.",
        next_step="Do not use it. Tell whoever gave it to you, and ask the hospital's operator for a new one.",
    )


def _not_a_token() -> OperatorError:
    return OperatorError(
        "token.not_a_token",
        "What was read is no enrolment token.",
        next_step="Use the stick or the code that the consortium made for this hospital.",
    )


def _other_version() -> OperatorError:
    return OperatorError(
        "token.other_version",
        "The enrolment token is of another version than this box understands.",
        next_step="Ask the consortium for a token for this version of the box, or update the box.",
    )


def _damaged() -> OperatorError:
    return OperatorError(
        "token.damaged",
        "The enrolment token was damaged or not read completely.",
        next_step="Read it once more. If that fails too, ask the hospital's operator for a new one.",
    )
