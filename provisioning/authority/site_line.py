"""A hospital's own tools ask the registrar, each request signed by the hospital's key."""

from __future__ import annotations

import base64
import hashlib
import ssl
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.envelope import Proof, encode_proof
from agent.statements.kinds import SiteRequest
from agent.statements.roots import key_id
from agent.trust.records import ServerRecord
from provisioning.tokens.token import Issuer, RandomBytes

LIMIT_S: Final = 15.0
ANSWER_LIMIT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 16 << 20
NONCE_BYTES: Final = 32
_PASSING: Final = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class _Refusal(BaseModel):
    model_config = ConfigDict(frozen=True)

    code: str = Field(pattern=r"^[a-z0-9_.]{1,100}$")
    sentence: str = Field(max_length=1000)
    next_step: str = Field(max_length=1000)


class SiteLine:
    """Requests under `/v1/sites/<site>`; a context manager.

    Args:
        registrar: Where it is, and whose certificates count.
        consortium: Digest of its root, hex.
        site: The hospital.
        key: The hospital's, as the repository lists it in its role.
        clock: For the time of each request.
        random_bytes: For nonces.
    """

    def __init__(
        self,
        registrar: ServerRecord,
        *,
        consortium: str,
        site: SiteID,
        key: Issuer,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._consortium, self._site, self._key = consortium, site, key
        self._clock, self._random_bytes = clock, random_bytes
        self._client = httpx.Client(
            base_url=f"https://{registrar.address}",
            verify=ssl.create_default_context(cadata=registrar.root_certificates),
            timeout=LIMIT_S,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def call(self, method: str, place: str, body: bytes = b"") -> bytes:
        """Ask for one thing.

        Args:
            method: HTTP method.
            place: Path after `/v1/sites/<site>`.
            body: JSON.

        Returns:
            The answer's body.

        Raises:
            NetworkError: The registrar does not answer (`site_line.unreachable`), or not now (`site_line.busy`).
            OperatorError: It refuses, and says why (`site_line.refused`).
            PeerProtocolError: It answers with something else (`site_line.bad_answer`).
        """
        path = f"/v1/sites/{self._site}{place}"
        headers = {"authorization": self._authorization(method, path, body)}
        if body:
            headers["content-type"] = "application/json"
        try:
            with self._client.stream(method, path, content=body or None, headers=headers) as response:
                answer = self._bounded(response)
        except httpx.TransportError as error:
            raise _unreachable(str(error)) from error
        if response.status_code in _PASSING:
            raise _busy(answer)
        if not response.is_success:
            raise _refused(response.status_code, answer)
        return answer

    def _bounded(self, response: httpx.Response) -> bytes:
        """The whole answer, within a size and a time: one that drips does not hold the hospital's tools."""
        end_s, answer = self._clock.monotonic_s() + ANSWER_LIMIT_S, bytearray()
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > MAX_ANSWER_BYTES:
                raise _bad_answer(f"more than {MAX_ANSWER_BYTES} bytes")
            if self._clock.monotonic_s() > end_s:
                raise _unreachable(f"its answer took longer than {ANSWER_LIMIT_S:g} s")
        return bytes(answer)

    def _authorization(self, method: str, path: str, body: bytes) -> str:
        request = SiteRequest(
            consortium=self._consortium,
            site=self._site,
            method=method,
            path=path,
            body=hashlib.sha256(body).hexdigest(),
            issued_s=int(self._clock.now().timestamp()),
            nonce=self._random_bytes(NONCE_BYTES).hex(),
        )
        unsigned = Proof(request.payload_type(), request.payload(), key_id(self._key.public_key), b"")
        signature = self._key.sign(unsigned.signed_bytes())
        envelope = encode_proof(Proof(unsigned.payload_type, unsigned.payload, unsigned.key_id, signature))
        return f"DSSE {base64.urlsafe_b64encode(envelope).decode('ascii')}"


def _unreachable(why: str) -> NetworkError:
    return NetworkError(
        "site_line.unreachable",
        f"The registrar does not answer: {why}.",
        next_step="Check the network and the registrar; the same again changes nothing twice.",
    )


def _busy(answer: bytes) -> NetworkError:
    try:
        said = _Refusal.model_validate_json(answer).sentence
    except ValidationError:
        said = "It does not say why."
    return NetworkError(
        "site_line.busy",
        f"The registrar cannot do it now: {said}",
        next_step="Wait a little, and try again; the same again changes nothing twice.",
    )


def _refused(status: int, answer: bytes) -> OperatorError | PeerProtocolError:
    try:
        refusal = _Refusal.model_validate_json(answer)
    except ValidationError:
        return _bad_answer(f"status {status}")
    return OperatorError(
        "site_line.refused",
        f"The registrar refuses: {refusal.sentence}",
        next_step=refusal.next_step,
        registrar_code=refusal.code,
    )


def _bad_answer(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "site_line.bad_answer",
        f"The registrar answered with something else than it should: {what}.",
        next_step="See that the address is the registrar's and that it runs this version.",
    )
