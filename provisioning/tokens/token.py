"""Issuing enrolment tokens for a site: what is signed, what the registrar learns, and what stays at the site."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field

from agent.core.errors import OperatorError
from agent.core.ids import IdentifierText, SiteID
from agent.statements.kinds import Hex32, Seconds
from agent.statements.roots import key_id
from agent.trust.records import ServerRecord
from agent.trust.token import (
    ID_BYTES,
    MAX_EXPIRES_S,
    SECRET_BYTES,
    Token,
    ek_digest,
    issue_token,
    registrar_secret,
    site_secret,
)
from provisioning.tokens.state import KeptToken

MAX_BATCH: Final = 1000
LONGEST_VALIDITY_S: Final = 366 * 86_400

RandomBytes = Callable[[int], bytes]
"""So many bytes that nobody can guess."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a token leads.

    Args:
        registrar: `host:port`.
        tls_pin: (32,), SHA-256 of the certificate (DER) of the authority of its TLS certificate.
        root_digest: (32,), SHA-256 of the consortium's first root metadata.
    """

    registrar: str
    tls_pin: bytes
    root_digest: bytes

    @classmethod
    def of(cls, registrar: ServerRecord, root_digest: str) -> Self:
        """The destination that the consortium's own records name.

        Args:
            registrar: From `consortium.json`.
            root_digest: SHA-256 of `1.root.json`, hex.

        Raises:
            OperatorError: Not exactly one authority is named (`token.not_one_authority`).
        """
        try:
            authorities = x509.load_pem_x509_certificates(registrar.root_certificates.encode())
        except ValueError:
            authorities = []
        if len(authorities) != 1:
            raise OperatorError(
                "token.not_one_authority",
                "The consortium's record does not name exactly one authority for the registrar's certificate.",
                next_step="Publish consortium.json with that one certificate: a token pins it.",
                found=len(authorities),
            )
        pin = hashlib.sha256(authorities[0].public_bytes(Encoding.DER)).digest()
        return cls(registrar.address, pin, bytes.fromhex(root_digest))


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs tokens: the site's key, or the registrar's.

    Args:
        public_key: P-256, as the repository lists it.
        sign: Signs bytes with it: ECDSA over SHA-256, DER.
    """

    public_key: ec.EllipticCurvePublicKey
    sign: Callable[[bytes], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token ready to be handed out.

    Args:
        token: What it says.
        text: What the box reads.
    """

    token: Token
    text: str = field(repr=False)


class TokenEntry(BaseModel):
    """What the registrar keeps of a token: enough to recognise it, too little to use it.

    Args:
        id: Of the token, hex.
        site: The hospital that a box joins.
        secret_digest: SHA-256 of `registrar_secret`, hex.
        expires_s: From when it counts no more.
        ek_digest: `agent.trust.token.ek_digest` of the one box that may use it, hex; None where any may.
        issuer: Key id of who signed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    site: IdentifierText
    secret_digest: Hex32
    expires_s: Seconds
    ek_digest: Hex32 | None = None
    issuer: Hex32

    @classmethod
    def of(cls, token: Token, issuer: ec.EllipticCurvePublicKey) -> Self:
        """The entry for `token`."""
        return cls(
            id=token.id.hex(),
            site=token.site,
            secret_digest=hashlib.sha256(registrar_secret(token)).hexdigest(),
            expires_s=token.expires_s,
            ek_digest=None if token.ek_digest is None else token.ek_digest.hex(),
            issuer=key_id(issuer),
        )


class TokenRegister(Protocol):
    """Where tokens are made known to the registrar."""

    def add(self, entry: TokenEntry) -> None:
        """Make a token known; the same entry again changes nothing.

        Raises:
            SecureHealthError: It cannot be reached or refuses, e.g. another entry has this id.
        """
        ...


class SiteTokens(Protocol):
    """Where the site's endorsing tool finds what proves a token to it."""

    def add(self, kept: KeptToken) -> None:
        """Keep it; on disk when this returns."""
        ...


def make_tokens(
    destination: Destination,
    site: SiteID,
    *,
    boxes: Iterable[bytes | None],
    expires_s: int,
    random_bytes: RandomBytes,
) -> list[Token]:
    """Make one token for each box.

    Args:
        destination: The consortium.
        site: The hospital.
        boxes: For each token the name of the endorsement key of the box that it is for, or None for any box.
        expires_s: From when they count no more.
        random_bytes: For ids and secrets.

    Raises:
        OperatorError: There are more than 1000, or `expires_s` is no time (`token.bad_request`).
    """
    names = list(boxes)
    if not 1 <= len(names) <= MAX_BATCH:
        raise _bad_request(f"{len(names)} tokens were asked for; 1 to {MAX_BATCH} can be made at a time")
    if not 0 < expires_s < MAX_EXPIRES_S:
        raise _bad_request("the time until which they are to be valid is out of range")
    return [
        Token(
            registrar=destination.registrar,
            id=random_bytes(ID_BYTES),
            secret=random_bytes(SECRET_BYTES),
            tls_pin=destination.tls_pin,
            root_digest=destination.root_digest,
            site=site,
            expires_s=expires_s,
            ek_digest=None if name is None else ek_digest(name),
        )
        for name in names
    ]


def issue(
    tokens: Iterable[Token], issuer: Issuer, register: TokenRegister, site_tokens: SiteTokens | None
) -> list[IssuedToken]:
    """Sign tokens and make them known, so that those returned can be used.

    Args:
        tokens: From `make_tokens`.
        issuer: Who signs.
        register: The registrar's.
        site_tokens: The endorsing tool's, where the site issues; None where the registrar does, and a person of the
            site endorses.

    Raises:
        SecureHealthError: One could not be signed, kept or made known; none may be handed out then.
    """
    issued = [IssuedToken(token, issue_token(token, issuer.public_key, issuer.sign)) for token in tokens]
    for one in issued:
        if site_tokens is not None:
            site_tokens.add(KeptToken.of(one.token, site_secret(one.token)))
        register.add(TokenEntry.of(one.token, issuer.public_key))
    return issued


def _bad_request(what: str) -> OperatorError:
    return OperatorError(
        "token.bad_request", f"No token was made: {what}.", next_step="Ask for fewer, or for less time."
    )
