"""Enrolment tokens for tests, signed with a key in memory."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.ids import SiteID
from agent.trust.token import Token, issue_token

ISSUED_S = 1_700_000_000
EXPIRES_S = ISSUED_S + 7 * 86_400
TOKEN = Token(
    registrar="registrar.example.org:8443",
    id=bytes(range(8)),
    secret=bytes(range(16)),
    tls_pin=bytes(range(32)),
    root_digest=bytes(range(32, 64)),
    site=SiteID("university-hospital-a"),
    expires_s=EXPIRES_S,
)
BOUND = replace(TOKEN, ek_digest=bytes(range(64, 96)))
ISSUER = ec.derive_private_key(0x5EC0E, ec.SECP256R1())


def token_text(token: Token = TOKEN, key: ec.EllipticCurvePrivateKey = ISSUER) -> str:
    """A token's text, signed with `key`."""
    return issue_token(token, key.public_key(), lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())))
