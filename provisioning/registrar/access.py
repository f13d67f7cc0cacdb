"""Who asks: a box by its token's secret, a hospital by a request that its own key signed, once."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.base64url import decode_bytes
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.envelope import parse_proof
from agent.statements.kinds import SiteRequest
from agent.statements.roots import key_id, verify_with

REQUEST_LIFETIME_S: Final = 300
MAX_HEADER_CHARACTERS: Final = 16_384
_BEARER, _DSSE = "Bearer ", "DSSE "


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as it came.

    Args:
        method: HTTP method.
        path: Path and query.
        authorization: That header; empty without.
        body: All of it.
    """

    method: str
    path: str
    authorization: str
    body: bytes


def parse_bearer(authorization: str) -> bytes:
    """The secret that a box authorises itself with.

    Raises:
        OperatorError: There is none (`registrar.not_authorised`).
    """
    if not authorization.startswith(_BEARER) or len(authorization) > MAX_HEADER_CHARACTERS:
        raise not_authorised("it does not prove an enrolment token")
    try:
        return decode_bytes(authorization.removeprefix(_BEARER))
    except ValueError as error:
        raise not_authorised("it does not prove an enrolment token") from error


def verify_site_request(
    asked: Asked, site: SiteID, keys: Sequence[ec.EllipticCurvePublicKey], *, consortium: str, now_s: int
) -> tuple[SiteRequest, str]:
    """Verify that a hospital's own key asks for exactly this; that it asks once is the caller's to see to.

    Args:
        asked: As it came.
        site: Whose affairs it is about.
        keys: Of the hospital's role; none where the consortium names no such hospital.
        consortium: Digest of its root, hex.
        now_s: Seconds since 1970.

    Returns:
        The request, and the id of the key that signed it.

    Raises:
        OperatorError: It is not signed by the hospital, is about something else, or too old
            (`registrar.not_authorised`).
    """
    try:
        if not asked.authorization.startswith(_DSSE) or len(asked.authorization) > MAX_HEADER_CHARACTERS:
            raise not_authorised("it carries no signed statement")
        envelope = base64.b64decode(asked.authorization.removeprefix(_DSSE), altchars=b"-_", validate=True)
        proof = parse_proof(envelope)
        key = next((key for key in keys if key_id(key) == proof.key_id), None)
        if key is None or proof.payload_type != SiteRequest.payload_type():
            raise not_authorised("it is not signed by that hospital's key")
        verify_with(key, proof)
        request = SiteRequest.parse(proof.payload)
    except (PeerProtocolError, binascii.Error) as error:
        raise not_authorised("its signature does not hold") from error
    _check_request(request, asked, site, consortium=consortium, now_s=now_s)
    return request, proof.key_id


def _check_request(request: SiteRequest, asked: Asked, site: SiteID, *, consortium: str, now_s: int) -> None:
    if (request.consortium, request.site) != (consortium, site):
        raise not_authorised("it was made for another consortium or hospital")
    if (request.method, request.path) != (asked.method, asked.path):
        raise not_authorised("it was made for another place")
    if not hmac.compare_digest(request.body, hashlib.sha256(asked.body).hexdigest()):
        raise not_authorised("its body is another than the one that was signed")
    if abs(now_s - request.issued_s) >= REQUEST_LIFETIME_S:
        raise not_authorised("it was signed too long ago, or by a clock that is wrong")


def not_authorised(what: str) -> OperatorError:
    """Whoever asks may not."""
    return OperatorError(
        "registrar.not_authorised",
        f"The registrar does not answer this request: {what}.",
        next_step="Use the hospital's own key, on a machine whose clock is right.",
    )
