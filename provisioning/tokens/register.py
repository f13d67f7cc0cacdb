"""Making tokens known to the registrar over its site API, signed by the site's own key."""

from __future__ import annotations

import base64
import hashlib
import ssl
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.statements.envelope import Proof, encode_proof
from agent.statements.kinds import SiteRequest
from agent.statements.roots import key_id
from provisioning.tokens.token import Issuer, RandomBytes, TokenEntry

LIMIT_S: Final = 15.0
MAX_ANSWER_BYTES: Final = 1 << 16
NONCE_BYTES: Final = 32


class _Refusal(BaseModel):
    model_config = ConfigDict(frozen=True)

    code: str = Field(pattern=r"^[a-z0-9_.]{1,100}$")
    sentence: str = Field(max_length=1000)
    next_step: str = Field(max_length=1000)


def authorization(request: SiteRequest, issuer: Issuer) -> str:
    """The value of the header `Authorization` for `request`: a DSSE envelope, signed by a key of the site's role."""
    unsigned = Proof(request.payload_type(), request.payload(), key_id(issuer.public_key), b"")
    signature = issuer.sign(unsigned.signed_bytes())
    envelope = encode_proof(Proof(unsigned.payload_type, unsigned.payload, unsigned.key_id, signature))
    return f"DSSE {base64.urlsafe_b64encode(envelope).decode('ascii')}"


class SiteRegister:
    """`TokenRegister` over `POST /v1/sites/<site>/tokens`; a context manager.

    Args:
        address: The registrar's `host:port`.
        trust: Whose certificates count.
        consortium: Digest of its root, hex.
        issuer: The site's key.
        clock: For the time of each request.
        random_bytes: For nonces.
    """

    def __init__(
        self,
        address: str,
        trust: ssl.SSLContext,
        *,
        consortium: str,
        issuer: Issuer,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._consortium, self._issuer = consortium, issuer
        self._clock, self._random_bytes = clock, random_bytes
        self._client = httpx.Client(
            base_url=f"https://{address}", verify=trust, timeout=LIMIT_S, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def add(self, entry: TokenEntry) -> None:
        """Make a token known; the same entry again changes nothing.

        Raises:
            NetworkError: The registrar does not answer (`token.registrar_unreachable`).
            OperatorError: It refuses, and says why (`token.registrar_refused`).
            PeerProtocolError: It answers with something else (`token.registrar_answer`).
        """
        path = f"/v1/sites/{entry.site}/tokens"
        body = entry.model_dump_json(exclude_none=True).encode()
        request = SiteRequest(
            consortium=self._consortium,
            site=entry.site,
            method="POST",
            path=path,
            body=hashlib.sha256(body).hexdigest(),
            issued_s=int(self._clock.now().timestamp()),
            nonce=self._random_bytes(NONCE_BYTES).hex(),
        )
        headers = {"authorization": authorization(request, self._issuer), "content-type": "application/json"}
        try:
            with self._client.stream("POST", path, content=body, headers=headers) as response:
                answer = _bounded(response)
        except httpx.TransportError as error:
            raise NetworkError(
                "token.registrar_unreachable",
                f"The registrar does not answer: {error}.",
                next_step="Check the network and the registrar, then issue the token again.",
            ) from error
        if not response.is_success:
            raise _refused(response.status_code, answer)


def _bounded(response: httpx.Response) -> bytes:
    answer = b""
    for chunk in response.iter_bytes():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            raise _bad_answer(f"more than {MAX_ANSWER_BYTES} bytes")
    return answer


def _refused(status: int, answer: bytes) -> OperatorError | PeerProtocolError:
    try:
        refusal = _Refusal.model_validate_json(answer)
    except ValidationError:
        return _bad_answer(f"status {status}")
    return OperatorError(
        "token.registrar_refused",
        f"The registrar did not take the token: {refusal.sentence}",
        next_step=refusal.next_step,
        registrar_code=refusal.code,
    )


def _bad_answer(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "token.registrar_answer",
        f"The registrar answered with something else than it should: {what}.",
        next_step="See that the address is the registrar's and that it runs this version; no token was handed out.",
    )
