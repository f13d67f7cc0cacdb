"""GA4GH visas as evidence of who asks (GA4GH AAI OpenID Connect Profile 1.2, GA4GH Passport 1.2).

A visa counts where an issuer of the site's own list signed it with a key of the site's own file. Nothing is fetched:
a visa's `jku` must be the one that the site wrote down, and only says which file is meant.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.validation import explain_invalid
from agent.trust.study import VisaIdentity

# Loaded with the first visa, or the first issuer: most hospitals ask for none, and the agent stays small.
if TYPE_CHECKING:
    from joserfc import jws
    from joserfc.jwk import KeySet

ALGORITHMS: Final = ("RS256", "ES256")
"""AAI 1.2, Signing Algorithms; both are asymmetric."""
MAX_JWKS_BYTES = 1 << 18
LEAST_RSA_BITS = 2048
CLOCK_SKEW_S = 300

_TYPES = frozenset({"jwt", "vnd.ga4gh.visa+jwt"})
_CONDITION_CLAIMS = frozenset({"value", "source", "by"})
"""Visa claims with a text for a value; conditions may look at no other."""

Seconds = Annotated[int, Field(ge=0, lt=1 << 48)]
ClaimText = Annotated[str, Field(min_length=1, max_length=1000)]
Authority = Literal["self", "peer", "system", "so", "dac"]


@dataclass(frozen=True, slots=True)
class VisaIssuer:
    """An issuer that the site trusts.

    Args:
        issuer: Its visas' `iss`.
        jku: What its visas' `jku` must say.
        keys: Its public keys.
    """

    issuer: str
    jku: str
    keys: KeySet


class VisaDemand(BaseModel):
    """A visa that a requester must show.

    Args:
        type: E.g. `ResearcherStatus`, `ControlledAccessGrants`.
        values: Any of these.
        sources: Who must have asserted it: any of these.
        by: With which authority; empty: any but `self`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClaimText
    values: tuple[ClaimText, ...] = Field(min_length=1)
    sources: tuple[ClaimText, ...] = Field(min_length=1)
    by: tuple[Authority, ...] = ()


class _VisaClaims(BaseModel):
    # Passport 1.2: claims that a clearinghouse does not know are ignored.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    type: ClaimText
    asserted: Seconds
    value: ClaimText
    source: ClaimText
    by: Authority | None = None
    conditions: list[list[dict[str, object]]] | None = Field(default=None, max_length=16)


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    iss: ClaimText
    sub: ClaimText
    iat: Seconds
    nbf: Seconds = 0
    exp: Seconds
    # RFC 7519 4.1.3: made for a named audience, which a hospital's box is not.
    aud: None = None
    ga4gh_visa_v1: _VisaClaims


@dataclass(frozen=True, slots=True)
class Visa:
    """A visa whose signature holds.

    Args:
        identity: Whom it speaks of, and by whose word.
        type, value, source, by: What is asserted, by whom, with which authority.
        conditions: Any of these lists, all of whose clauses another visa must meet; None: it stands alone.
    """

    identity: VisaIdentity
    type: str
    value: str
    source: str
    by: str | None
    conditions: tuple[tuple[Mapping[str, object], ...], ...] | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a study's visas show.

    Args:
        visas: Those that count.
        refusals: Why each of the others does not.
    """

    visas: tuple[Visa, ...]
    refusals: tuple[str, ...]


def parse_jwks(data: bytes) -> KeySet:
    """Parse an issuer's public keys (RFC 7517).

    Args:
        data: A JWK set, at most 256 KiB.

    Raises:
        OperatorError: It is none, or holds no key, a private or symmetric one, or one that is too weak
            (`visa.bad_keys`).
    """
    from joserfc.errors import JoseError  # noqa: PLC0415 - see above
    from joserfc.jwk import ECKey, KeySet, RSAKey  # noqa: PLC0415 - see above

    if len(data) > MAX_JWKS_BYTES:
        raise _bad_keys(f"it is larger than {MAX_JWKS_BYTES} bytes")
    try:
        keys = KeySet.import_key_set(json.loads(data))
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad_keys("it is no set of public keys in JSON (RFC 7517)") from error
    for key in keys.keys:
        if not isinstance(key, (RSAKey, ECKey)) or key.is_private:
            raise _bad_keys("it holds a key that is not an RSA or elliptic-curve public key")
        if isinstance(key, RSAKey) and key.public_key.key_size < LEAST_RSA_BITS:
            raise _bad_keys(f"it holds an RSA key of less than {LEAST_RSA_BITS} bits")
    return keys


def verify_visa(token: str, issuers: Mapping[str, VisaIssuer], *, now_s: int) -> Visa:
    """Verify one visa; whom it speaks of and whether its conditions are met is for `weigh_visas`.

    Args:
        token: JWS compact serialisation.
        issuers: Those that the site trusts, by `iss`.
        now_s: Unix time.

    Raises:
        PeerProtocolError: It is no visa (`visa.malformed`), nobody trusted signed it (`visa.untrusted`), or its time
            is not now (`visa.expired`).
    """
    from joserfc import jws  # noqa: PLC0415 - see above
    from joserfc.errors import JoseError  # noqa: PLC0415 - see above

    try:
        signed = jws.extract_compact(token.encode())
        payload = _Payload.model_validate_json(signed.payload)
        header = signed.headers()
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        what = explain_invalid(error, whole="visa") if isinstance(error, ValidationError) else "it is no JWT"
        raise PeerProtocolError(
            "visa.malformed",
            f"A visa cannot be read: {what}.",
            next_step="Ask the requester for a visa of the GA4GH Passport format; this one counts for nothing.",
        ) from error
    _check_signature(signed, header, issuers.get(payload.iss))
    if not max(payload.iat, payload.nbf) - CLOCK_SKEW_S <= now_s < payload.exp:
        raise PeerProtocolError(
            "visa.expired",
            "A visa has expired, or is not valid yet.",
            next_step="Ask the requester for a current visa; this one counts for nothing.",
        )
    claims = payload.ga4gh_visa_v1
    return Visa(
        VisaIdentity(issuer=payload.iss, subject=payload.sub),
        claims.type,
        claims.value,
        claims.source,
        claims.by,
        None if not claims.conditions else tuple(tuple(clauses) for clauses in claims.conditions),
    )


def weigh_visas(
    tokens: Iterable[str], issuers: Mapping[str, VisaIssuer], *, identity: VisaIdentity | None, now_s: int
) -> Evidence:
    """Which of a study's visas count.

    Args:
        tokens: As they stand in the study.
        issuers: Those that the site trusts, by `iss`.
        identity: The person whom the study names; visas of anybody else count for nothing.
        now_s: Unix time.
    """
    verified: list[Visa] = []
    refusals: list[str] = []
    for token in tokens:
        try:
            visa = verify_visa(token, issuers, now_s=now_s)
        except PeerProtocolError as error:
            refusals.append(error.sentence)
            continue
        if visa.identity == identity:
            verified.append(visa)
        else:
            refusals.append("A visa speaks of another person than the study's requester.")
    alone = [visa for visa in verified if visa.conditions is None]
    counting = [visa for visa in verified if visa.conditions is None or _conditions_met(visa.conditions, alone)]
    refusals += ["A visa holds only under conditions that no other visa meets."] * (len(verified) - len(counting))
    return Evidence(tuple(counting), tuple(refusals))


def meets_demand(visa: Visa, demand: VisaDemand) -> bool:
    """Whether a visa that counts is the one that the site asks for."""
    by = visa.by in demand.by if demand.by else visa.by not in {None, "self"}
    return visa.type == demand.type and visa.value in demand.values and visa.source in demand.sources and by


def _check_signature(signed: jws.CompactSignature, header: Mapping[str, object], issuer: VisaIssuer | None) -> None:
    from joserfc import jws  # noqa: PLC0415 - see above
    from joserfc.errors import JoseError  # noqa: PLC0415 - see above

    kind = str(header.get("typ", "JWT")).lower().removeprefix("application/")
    if issuer is None or kind not in _TYPES or header.get("jku") != issuer.jku or not header.get("kid"):
        raise _untrusted()
    # RFC 7515 4: unknown header parameters are ignored; "crit" is honoured all the same.
    registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    try:
        holds = jws.validate_compact(signed, issuer.keys, registry=registry)
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise _untrusted() from error
    if not holds:
        raise _untrusted()


def _conditions_met(conditions: tuple[tuple[Mapping[str, object], ...], ...], others: Iterable[Visa]) -> bool:
    """Passport 1.2, `conditions`: any list, all of whose clauses are met by one other visa each."""
    known = tuple(others)
    return any(
        clauses and all(any(_clause_met(clause, visa) for visa in known) for clause in clauses)
        for clauses in conditions
    )


def _clause_met(clause: Mapping[str, object], visa: Visa) -> bool:
    claims = {name: pattern for name, pattern in clause.items() if name != "type"}
    if clause.get("type") != visa.type or not claims or not claims.keys() <= _CONDITION_CLAIMS:
        return False
    texts = {"value": visa.value, "source": visa.source, "by": visa.by or ""}
    return all(isinstance(pattern, str) and _matches(pattern, texts[name]) for name, pattern in claims.items())


def _matches(pattern: str, text: str) -> bool:
    kind, _, wanted = pattern.partition(":")
    if kind == "const":
        return text == wanted
    # Only ? and * are special in a visa's pattern; fnmatch knows [ too.
    plain = wanted.replace("[", "[[]")
    if kind == "pattern":
        return fnmatch.fnmatchcase(text, plain)
    if kind == "split_pattern":
        return any(fnmatch.fnmatchcase(part, plain) for part in text.split(";"))
    return False


def _untrusted() -> PeerProtocolError:
    return PeerProtocolError(
        "visa.untrusted",
        "A visa is not signed by an issuer and a key that this site's policy trusts.",
        next_step="Ask the requester for a visa of an issuer in the policy; this one counts for nothing.",
    )


def _bad_keys(what: str) -> OperatorError:
    return OperatorError(
        "visa.bad_keys",
        f"A visa issuer's file of keys cannot be used: {what}.",
        next_step="Fetch the issuer's public keys (JWKS) again, and check that they are the issuer's.",
    )
